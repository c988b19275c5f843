"""The naive reference itself: against the original package's recordings, against plain Transformers, and broken."""

import pytest
import torch

from references.golden_cases import cases, golden_model
from references.naive import naive_logits, naive_stream
from support.helpers import ROPES, TEETH, assert_close, largest_difference, random_ids, tiny_llama


@pytest.mark.parametrize("case", cases("stream", "prompt", "chunks"), ids=str)
@pytest.mark.parametrize("mode", ["streaming", "dense"])
def test_equals_the_recorded_logits(case, mode):
    calls = case.calls if mode == "dense" else None
    logits = naive_logits(golden_model(), case.ids[0], case.sinks, case.window, dense_calls=calls)
    if mode == "dense" or case.fits_the_cache:
        assert_close(logits, case.logits)
    else:
        assert largest_difference(logits, case.logits) > TEETH


@pytest.mark.parametrize("case", cases("generate"), ids=str)
def test_continues_as_recorded(case):
    calls = [case.prompt_length] + [1] * case.new_tokens
    logits = naive_logits(golden_model(), case.sequence, case.sinks, case.window, dense_calls=calls)
    assert torch.equal(logits[case.prompt_length - 1 : -1].argmax(-1), case.sequence[case.prompt_length :])


@pytest.mark.parametrize("window", [40, 100])  # within and beyond the length that switches dynamic and longrope
@pytest.mark.parametrize("rope", ROPES)
def test_a_text_that_fills_the_cache_is_plain_transformers(rope, window):
    sinks, changes = 4, {"attention_bias": True}
    if rope == "dynamic":
        changes["max_position_embeddings"] = 64
    model, ids = tiny_llama(rope=rope, **changes), random_ids(sinks + window + 1)
    with torch.no_grad():
        plain = model(ids[None], output_hidden_states=True)
    naive = naive_stream(model, ids, sinks, window)
    assert_close(naive.logits, plain.logits[0])
    assert_close(naive.hidden_states, torch.cat(plain.hidden_states), tolerance=1e-3)
    assert 0.5 < plain.logits.std() < 2


@pytest.mark.parametrize(
    "mistake",
    [{"window": 13}, {"window": 11}, {"sinks": 3}, {"query_offset": 1}, {"query_offset": -1}, {"frozen_sinks": True}],
    ids=str,
)
def test_every_mistake_shows(mistake):
    model, ids, right = tiny_llama(), random_ids(60), {"sinks": 4, "window": 12}
    difference = largest_difference(
        naive_logits(model, ids, **right)[40:], naive_logits(model, ids, **{**right, **mistake})[40:]
    )
    assert difference > TEETH
