"""Qwen4-Exp streams as long as its indexer selects every key."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from attention_sinks import inject_attention_sinks
from helpers import assert_close, cut, random_ids, refused, stream
from replay import replay_logits
from zoo import QWEN4, ZOO

if not (FOUND := [animal for animal in ZOO if animal.model_type == "qwen4_exp_text"]):
    pytest.skip("this Transformers keeps the positions of all tokens on the cache", allow_module_level=True)

ANIMAL = FOUND[0]
MOST = QWEN4["indexer_budget"] + QWEN4["indexer_compress_ratio"] - 1
IDS = random_ids(60)


def selecting_everything(plain):
    """The same model with a budget that no text here exceeds."""
    config = type(plain.config).from_dict({**plain.config.to_dict(), "indexer_budget": 64})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(plain.state_dict())
    return model


def test_the_limit_is_where_the_indexer_begins_to_leave_keys_out():
    plain = ANIMAL.build()
    with torch.no_grad():
        logits, right = (model(IDS[None, : MOST + 1]).logits for model in (plain, selecting_everything(plain)))
    assert torch.equal(logits[:, :MOST], right[:, :MOST])
    assert not torch.allclose(logits[:, MOST], right[:, MOST], atol=1e-2)


def test_a_window_beyond_the_limit_is_refused():
    words = ["attention_sink_window_size=15", "indexer_budget=16", "at most 14"]
    refused(ValueError, lambda: inject_attention_sinks(ANIMAL.build(), 4, 15), *words)


@pytest.mark.parametrize("lengths", [[1], [60], [1, 40, 19]])
def test_the_largest_window_streams(lengths):
    plain = ANIMAL.build()
    right = replay_logits(selecting_everything(plain), IDS, 4, MOST - 5)
    assert_close(stream(inject_attention_sinks(plain, 4, MOST - 5), IDS[None], cut(60, lengths))[0][0], right)


def test_a_dense_call_beyond_the_limit_is_refused():
    model = inject_attention_sinks(ANIMAL.build(), 2, 4, "dense")
    with torch.no_grad():
        assert_close(model(IDS[None, :MOST]).logits, ANIMAL.build()(IDS[None, :MOST]).logits)
    refused(ValueError, lambda: model(IDS[None, : MOST + 1]), "prefill='dense'", "indexer_budget", "make shorter calls")


def test_embeddings_with_the_ids_that_are_hashed():
    model, rows = inject_attention_sinks(ANIMAL.build(), 4, 12), IDS.view(2, 30)
    mask = torch.ones_like(rows)
    mask[0, :7] = 0
    embeds = model.get_input_embeddings()(rows)
    with torch.no_grad():
        right = model(rows, attention_mask=mask).logits
        logits = model(inputs_embeds=embeds, ple_input_ids=rows, attention_mask=mask).logits
    assert_close(logits[mask.bool()], right[mask.bool()])


def test_a_long_call_is_cut_with_the_ids_that_are_hashed(monkeypatch):
    model = inject_attention_sinks(ANIMAL.build(), 4, 12)
    monkeypatch.setattr("attention_sinks.forward.PIECE_SIZE", 8)
    with torch.no_grad():
        logits = model(inputs_embeds=model.get_input_embeddings()(IDS[None]), ple_input_ids=IDS[None]).logits
    assert_close(logits[0], replay_logits(ANIMAL.build(), IDS, 4, 12))


def test_the_cache_keeps_no_positions():
    model = inject_attention_sinks(ANIMAL.build(), 4, 12)
    _, cache = stream(model, IDS[None])
    assert cache.layers[1].indexer_position_ids is None and not hasattr(cache, "position_ids")
