"""The counters as tensors, which a compiled step moves on in place and the host reads when it next asks."""

import torch

from attention_sinks.cache.device_counters import DeviceCounters
from support.plans import counters_at

COUNTERS = counters_at(9, 4, moved=(3, 0))


def on_device(memory=4):
    return DeviceCounters(COUNTERS, memory, torch.device("cpu"))


def test_without_a_step_they_say_what_they_were_given():
    counters, columns, real = on_device().read()
    assert counters == COUNTERS and columns == 0 and real.shape == (2, 0)


def test_a_step_feeds_every_row():
    device_counters = on_device()
    device_counters.step(None)
    counters, columns, real = device_counters.read()
    assert counters == counters_at(10, 5, moved=(3, 0))
    assert columns == 1 and real.tolist() == [[True], [True]]


def test_a_row_that_sits_out():
    """The column counts for both rows, the token for one."""
    device_counters = on_device()
    device_counters.step(torch.tensor([True, False]))
    device_counters.step(None)
    counters, columns, real = device_counters.read()
    assert counters == counters_at(11, 5, moved=(3, 0))
    assert columns == 2 and real.tolist() == [[True, True], [False, True]]


def test_only_the_newest_columns_are_remembered():
    """Six steps with a memory of four; the row sat out in the first, the fourth and the sixth."""
    device_counters = DeviceCounters(counters_at(9), 4, torch.device("cpu"))
    for token in (False, True, True, False, True, False):
        device_counters.step(torch.tensor([token]))
    counters, columns, real = device_counters.read()
    assert counters == counters_at(12) and columns == 6
    assert real.tolist() == [[True, False, True, False]]  # steps 3 to 6, from old to new


def test_set_starts_to_count_again():
    device_counters = on_device()
    device_counters.step(None)
    device_counters.set(counters_at(20, 30, moved=(14, 24)))
    counters, columns, real = device_counters.read()
    assert counters == counters_at(20, 30, moved=(14, 24))
    assert columns == 0 and real.shape == (2, 0)


def test_tensors_are_written_in_place():
    """A compiled graph has noted where they lie."""
    device_counters = on_device()
    before = [tensor.data_ptr() for tensor in device_counters.tensors]
    device_counters.step(None)
    device_counters.set(COUNTERS)
    assert [tensor.data_ptr() for tensor in device_counters.tensors] == before
