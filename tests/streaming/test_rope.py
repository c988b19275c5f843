"""Rotary types whose frequencies depend on the length of the text: fixed for the life of a cache."""

from functools import partial

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.contract import (
    Subject,
    chunking_does_not_matter,
    equals_the_reference_token_by_token,
    the_batch_does_not_matter,
)
from support.helpers import (
    LENGTH_DEPENDENT,
    ROPES,
    TEETH,
    assert_close,
    cut,
    largest_difference,
    random_ids,
    stream,
    tiny_llama,
)


@pytest.mark.parametrize(
    "check", [equals_the_reference_token_by_token, chunking_does_not_matter, the_batch_does_not_matter]
)
@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
@pytest.mark.parametrize("window", [11, 12, 20])  # S + W + 1 = 16 is the original length, 17 and 25 lie beyond
def test_frequencies_are_those_of_a_full_cache(check, rope, window):
    check(Subject(partial(tiny_llama, **LENGTH_DEPENDENT[rope]), naive_logits, 4, window))


@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
def test_the_two_window_sizes_use_different_frequencies(rope):
    model, ids = tiny_llama(**LENGTH_DEPENDENT[rope]), random_ids(10)
    assert largest_difference(naive_logits(model, ids, 4, 11), naive_logits(model, ids, 4, 20)) > TEETH


@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
def test_one_model_serves_short_and_long_caches_in_turns(rope):
    plain = tiny_llama(**LENGTH_DEPENDENT[rope])
    model, ids = inject_attention_sinks(tiny_llama(**LENGTH_DEPENDENT[rope])), random_ids(80)
    caches = {window: AttentionSinkKVCache(model, 4, window) for window in (11, 20)}
    parts = {window: [] for window in caches}
    for start in range(0, 80, 10):
        for window, cache in caches.items():
            parts[window].append(stream(model, ids[None, start : start + 10], cut(10, [1, 4]), cache)[0][0])
    for window in caches:
        assert_close(torch.cat(parts[window]), naive_logits(plain, ids, 4, window))


@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
def test_the_rotary_module_is_left_as_it_was(rope):
    model = tiny_llama(**LENGTH_DEPENDENT[rope])
    before = {name: buffer.clone() for name, buffer in model.model.rotary_emb.named_buffers()}
    stream(inject_attention_sinks(model, 4, 20), random_ids(1, 100), [40, 60])
    after = dict(model.model.rotary_emb.named_buffers())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_yarn_scales_the_sinks_once():
    """The factor that YaRN puts on cos and sin belongs to a key once, however often the key is rotated."""
    config = {"rope": {**ROPES["yarn"], "attention_factor": 1.6}}
    logits, _ = stream(inject_attention_sinks(tiny_llama(**config), 4, 12), random_ids(1, 300), cut(300, [1, 3]))
    assert_close(logits[0], naive_logits(tiny_llama(**config), random_ids(1, 300)[0], 4, 12))
