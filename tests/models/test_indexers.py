"""Models with an indexer stream as long as it selects every key."""

import copy

import pytest
import torch

from attention_sinks import inject_attention_sinks
from references.replay import replay_logits
from support.helpers import TEETH, assert_close, cut, largest_difference, random_ids, refused, stream
from support.zoo import QWEN4, SPARSE, ZOO

MOST = {
    "qwen4_exp_text": QWEN4["indexer_budget"] + QWEN4["indexer_compress_ratio"] - 1,
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4", "hy_v4_vl"), SPARSE["index_topk"]
    ),
}
ANIMALS = [animal for animal in ZOO if animal.model_type in MOST]
IDS = random_ids(60)

if not ANIMALS:
    pytest.skip("this Transformers has no indexer that streams", allow_module_level=True)

every_indexer = pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.model_type)


def budget_of(animal):
    return "indexer_budget" if animal.model_type == "qwen4_exp_text" else "index_topk"


def selecting_everything(animal, plain):
    """The same model with a budget that no text here exceeds."""
    config = copy.deepcopy(plain.config)
    setattr(config.get_text_config(), budget_of(animal), 64)
    model = animal.auto.from_config(config, attn_implementation=animal.implementations[0]).eval()
    model.load_state_dict(plain.state_dict())
    return model


@every_indexer
def test_the_limit_is_where_the_indexer_begins_to_leave_keys_out(animal):
    plain, most = animal.build(), MOST[animal.model_type]
    with torch.no_grad():
        logits, right = (model(IDS[None]).logits[0] for model in (plain, selecting_everything(animal, plain)))
    assert_close(logits[:most], right[:most], 1e-5)
    assert largest_difference(logits[most:], right[most:]) > TEETH


@every_indexer
def test_a_window_beyond_the_limit_is_refused(animal):
    window = MOST[animal.model_type] - 4
    words = [f"attention_sink_window_size={window}", f"{budget_of(animal)}=", f"at most {window - 1}"]
    refused(ValueError, lambda: inject_attention_sinks(animal.build(), 4, window), *words)


@every_indexer
def test_the_largest_window_streams(animal):
    window = MOST[animal.model_type] - 5
    plain = animal.build()
    right = replay_logits(selecting_everything(animal, plain), IDS, 4, window)
    model = inject_attention_sinks(plain, 4, window)
    for lengths in ([1], [60], [1, 40, 19]):
        assert_close(stream(model, IDS[None], cut(60, lengths))[0][0], right)


@every_indexer
def test_a_dense_call_beyond_the_limit_is_refused(animal):
    model, most = inject_attention_sinks(animal.build(), 2, 4, "dense"), MOST[animal.model_type]
    with torch.no_grad():
        assert_close(model(IDS[None, :most]).logits, animal.build()(IDS[None, :most]).logits)
    words = ["prefill='dense'", budget_of(animal), "make shorter calls"]
    refused(ValueError, lambda: model(IDS[None, : most + 1]), *words)


# ---- n-grams of token ids beside the indexer


@pytest.fixture
def qwen4():
    found = [animal for animal in ANIMALS if animal.model_type == "qwen4_exp_text"]
    return found[0] if found else pytest.skip("this Transformers has no Qwen4-Exp that streams")


def test_embeddings_with_the_ids_that_are_hashed(qwen4):
    model, rows = inject_attention_sinks(qwen4.build(), 4, 12), IDS.view(2, 30)
    mask = torch.ones_like(rows)
    mask[0, :7] = 0
    embeds = model.get_input_embeddings()(rows)
    with torch.no_grad():
        right = model(rows, attention_mask=mask).logits
        logits = model(inputs_embeds=embeds, ple_input_ids=rows, attention_mask=mask).logits
    assert_close(logits[mask.bool()], right[mask.bool()])


def test_a_long_call_is_cut_with_the_ids_that_are_hashed(qwen4, monkeypatch):
    model = inject_attention_sinks(qwen4.build(), 4, 12)
    monkeypatch.setattr("attention_sinks.streaming.forward.CHUNK_SIZE", 8)
    with torch.no_grad():
        logits = model(inputs_embeds=model.get_input_embeddings()(IDS[None]), ple_input_ids=IDS[None]).logits
    assert_close(logits[0], replay_logits(qwen4.build(), IDS, 4, 12))


def test_the_cache_keeps_no_positions(qwen4):
    model = inject_attention_sinks(qwen4.build(), 4, 12)
    _, cache = stream(model, IDS[None])
    assert cache.layers[1].indexer_position_ids is None and not hasattr(cache, "position_ids")
