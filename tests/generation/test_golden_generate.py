"""`generate` against the original package's recordings."""

import torch

from references.golden_cases import every_subject, fits, streaming


def generated(case, implementation, prefill):
    model = streaming(case, implementation, prefill)
    # MPT's config switches the cache off; the recordings were made with one.
    return model.generate(case.ids, max_new_tokens=case.new_tokens, do_sample=False, use_cache=True)[0]


@every_subject("generate")
def test_with_dense_prefill_continues_as_recorded(case, implementation):
    assert torch.equal(generated(case, implementation, "dense"), case.sequence)


@every_subject("generate", when=fits)
def test_from_a_short_prompt_continues_as_recorded(case, implementation):
    assert torch.equal(generated(case, implementation, "streaming"), case.sequence)
