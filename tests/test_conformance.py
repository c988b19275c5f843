"""Every architecture through the same checks; the summary prints what each model really had."""

import pytest

from conformance import CHECKS, has_what_the_row_claims
from zoo import ZOO


@pytest.mark.parametrize("animal", ZOO, ids=str)
def test_has_what_its_row_claims(animal, conformance_report):
    conformance_report[str(animal)] = has_what_the_row_claims(animal)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("animal", ZOO, ids=str)
def test_conforms(animal, check):
    check(animal)
