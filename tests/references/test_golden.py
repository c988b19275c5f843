"""The library, and the reference of the conformance checks, against the original package's recordings."""

import pytest

from references.golden_cases import ARCHITECTURES, SUBJECTS, cases, every_subject, fits, golden_model, streaming
from references.replay import replay_logits
from support.helpers import TEETH, assert_close, cut, largest_difference, stream


def test_every_recording_is_used():
    assert len(ARCHITECTURES) == 9 and len(SUBJECTS) == 15
    assert {len(cases("stream", "prompt", "chunks", "generate", architecture=name)) for name in ARCHITECTURES} == {12}


@every_subject("stream", "prompt", when=fits)
@pytest.mark.parametrize("lengths", [[1], [1000], [7], [16, 17, 18], [10, 1, 1, 30]], ids=str)
def test_recorded_streams_in_any_chunking(case, implementation, lengths):
    logits, _ = stream(streaming(case, implementation), case.ids, cut(case.ids.shape[1], lengths))
    assert_close(logits[0], case.logits)


@every_subject("stream", "prompt", "chunks")
def test_dense_prefill_in_the_recorded_calls(case, implementation):
    logits, cache = stream(streaming(case, implementation, "dense"), case.ids, case.calls)
    assert_close(logits[0], case.logits)
    assert cache.tokens_cached.tolist() == [case.sinks + case.window]


@every_subject("prompt", "chunks", when=lambda case: not case.fits_the_cache)
def test_long_calls_differ_in_the_default_mode(case, implementation):
    logits, _ = stream(streaming(case, implementation), case.ids, case.calls)
    assert largest_difference(logits[0], case.logits) > TEETH


@every_subject("stream", "prompt", when=fits)
def test_the_reference_of_the_conformance_checks_gives_the_recorded_logits(case, implementation):
    plain = golden_model(case.architecture, implementation)
    assert_close(replay_logits(plain, case.ids[0], case.sinks, case.window), case.logits)
