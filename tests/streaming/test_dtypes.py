"""Dtypes that meet in one stream: autocast comes and goes, and the model is cast, while a cache lives."""

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.helpers import (
    S,
    W,
    assert_close,
    assert_same_state,
    cut,
    random_ids,
    refused,
    state_of,
    stream,
    streaming_llama,
    tiny_llama,
)
from support.zoo import animal_of

LENGTH = 60


def autocast(enabled):
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def stored_dtypes(cache):
    return {tensor.dtype for layer in cache.layers for tensor in layer.tensors}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("later", [1, 7], ids=["steps", "calls"])
@pytest.mark.parametrize("first", [True, False], ids=["on, then off", "off, then on"])
def test_autocast_comes_and_goes(first, later, implementation):
    model, ids = streaming_llama(attn_implementation=implementation), random_ids(1, LENGTH)
    cache, logits, dtypes = AttentionSinkKVCache(model), [], set()
    for index, part in enumerate(ids.split([20, *cut(20, [later]), *cut(20, [later])], dim=1)):
        with autocast(first if cache.get_seq_length() < 20 or cache.get_seq_length() >= 40 else not first):
            logits.append(stream(model, part, cache=cache)[0].float())
        dtypes |= stored_dtypes(cache)
        assert index or cache.dtype == torch.float32
    assert dtypes == {torch.float32}  # keys are rotated in float32, also under autocast
    assert_close(torch.cat(logits, dim=1)[0], naive_logits(tiny_llama(), ids[0], S, W), tolerance=0.5)
    assert (torch.cat(logits, dim=1)[0] - naive_logits(tiny_llama(), ids[0], S, W)).abs().mean() < 0.1


@pytest.mark.parametrize("model_type", ["bloom", "gpt_neox", "falcon", "deepseek_v3", "qwen3_next", "bamba"])
@pytest.mark.parametrize("first", [True, False], ids=["on, then off", "off, then on"])
def test_autocast_with_other_kinds_of_layers(model_type, first):
    """A stream with autocast in a part of it is as near to one without as one with autocast throughout."""
    ids, logits = random_ids(1, 24), {}
    for name, parts in {"never": (False,) * 3, "always": (True,) * 3, "sometimes": (first, not first, first)}.items():
        model, cache, found = inject_attention_sinks(animal_of(model_type).build(), 4, 8), None, []
        for part, enabled in zip(ids.split([12, 1, 11], dim=1), parts, strict=True):
            with autocast(enabled):
                some, cache = stream(model, part, cache=cache)
            found.append(some.float())
        logits[name] = torch.cat(found, dim=1)
    error = {name: (logits[name] - logits["never"]).abs().mean() for name in ("always", "sometimes")}
    assert 0 < error["sometimes"] <= 1.5 * error["always"]


def test_autocast_and_recording_and_crop():
    model, ids = streaming_llama(), random_ids(1, 40)
    cache = AttentionSinkKVCache(model)
    cache.activate_past_recording()
    stream(model, ids[:, :30], cache=cache)
    with autocast(True):
        stream(model, ids[:, 30:], [5, 1, 1, 3], cache=cache)
    cache.crop(-10)
    again, _ = stream(model, ids[:, 30:], [10], cache=cache)
    expected, _ = stream(streaming_llama(), ids, [30, 10])
    assert_close(again, expected[:, 30:])


@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_cast_while_a_cache_lives(cast, length):
    """Casting rounds the rotary frequencies, by which the keys of the cache were rotated."""
    model, ids = streaming_llama(), random_ids(1, LENGTH)
    _, cache = stream(model, ids, [30, *[1] * 5, 25])
    before = state_of(cache)
    model.to(cast)
    part = ids[:, :length]
    refused(ValueError, lambda: stream(model, part, cache=cache), "cache", torch.float32, cast, "AttentionSinkKVCache")
    assert_same_state(cache, before)
    cache.reset()
    logits, _ = stream(model, ids, [30, 30], cache=cache)
    assert torch.equal(logits, stream(model, ids, [30, 30])[0])
    assert stored_dtypes(cache) == {cast} and cache.dtype == cast


def test_a_model_whose_positions_stay_may_be_cast():
    """To more digits, and where nothing is rotated: the cache keeps its dtype and converts."""
    ids = random_ids(1, LENGTH)
    expected, _ = stream(streaming_llama(), ids)
    model = streaming_llama()
    _, cache = stream(model, ids[:, :30])
    logits, _ = stream(model.double(), ids[:, 30:], [1, 1, 28], cache=cache)
    assert logits.dtype == torch.float64 and cache.dtype == torch.float32
    assert_close(logits, expected[:, 30:])

    bloom = animal_of("bloom").build
    expected, _ = stream(inject_attention_sinks(bloom(), S, W), ids)
    model = inject_attention_sinks(bloom(), S, W)
    _, cache = stream(model, ids[:, :30])
    logits, _ = stream(model.bfloat16(), ids[:, 30:], [1, 1, 28], cache=cache)
    assert logits.dtype == torch.bfloat16 and cache.dtype == torch.float32
    assert (logits.float() - expected[:, 30:]).abs().mean() < 0.1
