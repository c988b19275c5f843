"""Beam search, beam sampling and several sequences: beams reorder streams, not columns.

The reference feeds the whole sequence of every beam afresh at every step: without a cache there is nothing to reorder.
"""

import copy

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from support.contract import left_padded
from support.helpers import random_ids, refused, stream, tiny_llama

EOS = {"eos_token_id": 5, "pad_token_id": 0}


def same_without_a_cache(model, prompt, **options):
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        results.append(model.generate(prompt, use_cache=use_cache, **options))
    assert torch.equal(*results)
    return results[0]


SEARCHES = {
    "beams": {"num_beams": 3},
    "several of the beams": {"num_beams": 4, "num_return_sequences": 3},
    "beams that end": {"num_beams": 3, **EOS},
    "early stopping": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5, **EOS},
    "beam sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5},
    "beam sampling that ends": {"num_beams": 3, "do_sample": True, **EOS},
    "several samples": {"do_sample": True, "num_return_sequences": 4, "top_k": 20},
    "repetition penalty": {"num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("counts", [[20], [30, 7]], ids=str)
def test_searches_find_what_they_find_without_a_cache(model, search, counts):
    mask = left_padded(counts).long()
    prompt = random_ids(*mask.shape).clamp(min=6)
    options = {"do_sample": False, "max_new_tokens": 40, **SEARCHES[search]}
    same_without_a_cache(model, prompt, attention_mask=mask, **options)


def test_beams_are_those_of_plain_transformers_while_nothing_is_evicted():
    prompt, options = random_ids(2, 6), {"num_beams": 3, "max_new_tokens": 10, "do_sample": False}
    streaming = inject_attention_sinks(tiny_llama(), 4, 40)
    assert torch.equal(streaming.generate(prompt, **options), tiny_llama().generate(prompt, **options))


def test_beam_search_written_out(model):
    """Three beams by hand, each step a fresh call of all sequences."""
    sequences, scores = random_ids(1, 20), torch.zeros(1)
    for _ in range(40):
        logits, _ = stream(model, sequences)
        candidates = (scores[:, None] + logits[:, -1].log_softmax(-1)).flatten()
        scores, best = candidates.topk(3)
        sequences = torch.cat([sequences[best // 64], best[:, None] % 64], dim=1)
    found = model.generate(random_ids(1, 20), num_beams=3, max_new_tokens=40, do_sample=False)
    assert torch.equal(found[0], sequences[scores.argmax()])
    greedy = model.generate(random_ids(1, 20), max_new_tokens=40, do_sample=False)
    assert not torch.equal(found, greedy)


def test_beams_with_prefill_in_chunks(model):
    options = {"num_beams": 3, "max_new_tokens": 30, "do_sample": False}
    whole = model.generate(random_ids(2, 50), **options)
    assert torch.equal(whole, model.generate(random_ids(2, 50), prefill_chunk_size=7, **options))


def test_the_cache_after_beam_search_holds_the_beams_of_the_last_step(model):
    """`num_beams` rows per prompt, all but the last token, in no promised order: not for another turn."""
    fed = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    outputs = model.generate(random_ids(2, 20), num_beams=3, max_new_tokens=30, return_dict_in_generate=True)
    hook.remove()
    cache = outputs.cache
    assert cache.batch_size == 6 and cache.tokens_seen.tolist() == [49] * 6 == [cache.get_seq_length()] * 6
    assert [tuple(ids.shape) for ids in fed] == [(6, 20)] + [(6, 1)] * 29
    cache.batch_select_indices(torch.tensor([5]))
    assert cache.batch_size == 1 and len(stream(model, random_ids(1, 5), cache=cache)[0]) == 1


def test_samples_go_on_from_their_own_rows(model):
    """After several samples of one prompt every row of the cache continues the sequence of its row."""
    outputs = model.generate(
        random_ids(1, 20), do_sample=True, num_return_sequences=3, max_new_tokens=30, return_dict_in_generate=True
    )
    rest = torch.cat([outputs.sequences[:, -1:], random_ids(3, 10, seed=1)], dim=1)
    expected, _ = stream(model, torch.cat([outputs.sequences[:, :-1], rest], dim=1))
    got, _ = stream(model, rest, cache=outputs.cache)
    assert (got - expected[:, 49:]).abs().max() < 2e-4


def test_beams_over_a_cache_made_ready_for_them(model):
    past, turn = random_ids(2, 30), random_ids(2, 5, seed=1)
    _, cache = stream(model, past)
    ids = torch.cat([past, turn], dim=1)
    options = {"attention_mask": torch.ones_like(ids), "num_beams": 3, "max_new_tokens": 30, "do_sample": False}
    message = refused(ValueError, lambda: model.generate(ids, cache=cache, **options), "cache")
    assert "2 rows" in message and "6" in message and "num_beams=3" in message
    assert cache.tokens_seen.tolist() == [30, 30]
    cache.batch_repeat_interleave(3)
    unmasked = {**options, "attention_mask": None, "cache": copy.deepcopy(cache)}
    assert torch.equal(model.generate(turn, **unmasked), model.generate(ids, **options)[:, 30:])
    assert torch.equal(model.generate(ids, cache=cache, **options), model.generate(ids, **options))


def test_several_sequences_over_a_cache_of_one_row(model):
    _, cache = stream(model, random_ids(1, 30))
    options = {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 5, "cache": cache}
    refused(ValueError, lambda: model.generate(random_ids(1, 5), **options), "num_return_sequences=2")
    assert isinstance(cache, AttentionSinkKVCache) and cache.tokens_seen.tolist() == [30]
