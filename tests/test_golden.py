"""The library against the original package's recordings."""

from copy import deepcopy

import pytest
import torch

from attention_sinks import inject_attention_sinks
from golden_cases import cases, golden_model
from helpers import TEETH, assert_close, cut, largest_difference, stream


def streaming(case, prefill="streaming"):
    return inject_attention_sinks(deepcopy(golden_model()), case.sinks, case.window, prefill)


@pytest.mark.parametrize("case", [c for c in cases("stream", "prompt") if c.fits_the_cache], ids=str)
@pytest.mark.parametrize("lengths", [[1], [1000], [7], [16], [17], [18], [10, 1, 1, 30]], ids=str)
def test_recorded_streams_in_any_chunking(case, lengths):
    logits, _ = stream(streaming(case), case.ids, cut(case.ids.shape[1], lengths))
    assert_close(logits[0], case.logits)


@pytest.mark.parametrize("case", cases("stream", "prompt", "chunks"), ids=str)
def test_dense_prefill_in_the_recorded_calls(case):
    logits, cache = stream(streaming(case, "dense"), case.ids, case.calls)
    assert_close(logits[0], case.logits)
    assert cache.tokens_cached.tolist() == [case.sinks + case.window]


@pytest.mark.parametrize("case", [c for c in cases("prompt", "chunks") if not c.fits_the_cache], ids=str)
def test_long_calls_differ_in_the_default_mode(case):
    logits, _ = stream(streaming(case), case.ids, case.calls)
    assert largest_difference(logits[0], case.logits) > TEETH


def generated(case, prefill):
    model = streaming(case, prefill)
    return model.generate(case.ids, max_new_tokens=case.new_tokens, do_sample=False)[0]


@pytest.mark.parametrize("case", cases("generate"), ids=str)
def test_generate_with_dense_prefill_continues_as_recorded(case):
    assert torch.equal(generated(case, "dense"), case.sequence)


@pytest.mark.parametrize("case", [c for c in cases("generate") if c.fits_the_cache], ids=str)
def test_generate_from_a_short_prompt_continues_as_recorded(case):
    assert torch.equal(generated(case, "streaming"), case.sequence)
