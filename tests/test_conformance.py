"""Every architecture through the same checks; the summary prints what each model really had."""

import pytest

from conformance import CHECKS, has_what_the_row_claims
from zoo import ZOO

CORE = {"llama", "mistral", "falcon", "mpt", "gpt_neox", "gptj", "qwen", "stablelm_epoch", "btlm", "Yi"}
"""The architectures of 0.4.0: `make test` runs these, `make test-architectures` all."""

MODELS = [
    pytest.param(animal, id=str(animal), marks=() if animal.model_type in CORE else pytest.mark.every_architecture)
    for animal in ZOO
]


@pytest.mark.parametrize("animal", MODELS)
def test_has_what_its_row_claims(animal, conformance_report):
    conformance_report(animal, has_what_the_row_claims(animal))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("animal", MODELS)
def test_conforms(animal, check):
    check(animal)
