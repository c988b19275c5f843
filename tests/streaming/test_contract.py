"""The contract, for every kind of Llama: heads, biases, rotary types, and sizes at their limits."""

from functools import partial

import pytest

from references.naive import naive_logits
from support.contract import CHECKS, Subject
from support.helpers import tiny_llama

pytestmark = pytest.mark.each_release


def llama(sinks=4, window=12, **config):
    return Subject(partial(tiny_llama, **config), naive_logits, sinks, window)


SUBJECTS = {
    "gqa": llama(),
    "mha": llama(num_key_value_heads=4),
    "mqa": llama(num_key_value_heads=1),
    "bias": llama(attention_bias=True, mlp_bias=True, num_hidden_layers=3),
    "own_head_dim": llama(head_dim=24),
    "linear": llama(rope="linear"),
    "dynamic": llama(rope="dynamic"),
    "yarn": llama(rope="yarn"),
    "llama3": llama(rope="llama3"),
    "longrope": llama(rope="longrope"),
    "windowed": llama(sinks=0, window=16),
    "one_sink": llama(sinks=1, window=7),
    "many_sinks": llama(sinks=9, window=3),
    "window_of_one": llama(sinks=2, window=1),
    "smallest": llama(sinks=0, window=1),
}


# Windows and sinks wider than any block of queries that an implementation may take at once.
WIDE = {"wide_window": llama(window=150), "wide_sinks": llama(sinks=90, window=70)}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", WIDE.values(), ids=WIDE)
def test_contract_of_wide_caches(subject, check):
    check(subject)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_contract(subject, check):
    check(subject)
