"""Every architecture through the same checks; the summary prints what each model really had."""

import pytest

from support.conformance import CHECKS, has_what_the_row_claims
from support.zoo import MODELS

pytestmark = pytest.mark.each_release


@pytest.mark.parametrize("animal", MODELS)
def test_has_what_its_row_claims(animal, conformance_report):
    conformance_report(animal, has_what_the_row_claims(animal))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("animal", MODELS)
def test_conforms(animal, check):
    check(animal)
