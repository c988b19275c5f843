"""Where a token lies in memory: the sinks first, then a ring of W + 1 slots."""

import pytest
import torch

from attention_sinks.plan.reach import Reach
from support.plans import RING, slot


def slots(reach, positions):
    return [slot(reach, position) for position in positions]


def test_sizes():
    assert (RING.sink_size, RING.window_size) == (2, 3)
    assert RING.cached_size == 5  # what the next query finds: 2 sinks and 3 tokens of the window
    assert RING.visible_size == 6  # the same and the query's own key: the slots of the buffer


def test_sinks_lie_first():
    assert slots(RING, [0, 1]) == [0, 1]


def test_the_first_window_lies_in_order():
    assert slots(RING, [2, 3, 4, 5]) == [2, 3, 4, 5]


def test_later_tokens_go_round_the_ring():
    """Each token overwrites the one W + 1 before it, and no token ever moves.

    With S = 2 and W = 3, the buffer after the tokens up to stream position t::

        slot      0   1 | 2   3   4   5
        t = 5     0   1 | 2   3   4   5     full: query 5 sees every slot
        t = 6     0   1 | 6   3   4   5     6 takes the place of 2, which query 6 no longer sees
        t = 7     0   1 | 6   7   4   5
        t = 8     0   1 | 6   7   8   5
        t = 9     0   1 | 6   7   8   9     a round later
        t = 10    0   1 | 10  7   8   9
    """
    assert slots(RING, [6, 7, 8, 9, 10]) == [2, 3, 4, 5, 2]

    buffer = [None] * RING.visible_size
    for token in range(11):
        buffer[slot(RING, token)] = token
    assert buffer == [0, 1, 10, 7, 8, 9]


@pytest.mark.parametrize("reach", [RING, Reach(0, 4), Reach(3, 0), Reach(1, 1)], ids=str)
def test_the_buffer_holds_the_sinks_and_the_newest_tokens(reach):
    buffer = {}
    for t in range(30):
        buffer[slot(reach, t)] = t
        sinks = range(min(reach.sink_size, t + 1))
        recent = range(max(reach.sink_size, t - reach.window_size), t + 1)
        assert sorted(buffer.values()) == [*sinks, *recent]
        assert max(buffer) < reach.visible_size


def test_without_sinks_the_whole_buffer_is_the_ring():
    assert slots(Reach(0, 3), range(6)) == [0, 1, 2, 3, 0, 1]


def test_without_a_window_the_current_token_has_one_slot():
    assert slots(Reach(2, 0), range(6)) == [0, 1, 2, 2, 2, 2]


def test_a_tensor_of_positions_gives_a_tensor_of_slots():
    positions = torch.arange(12).view(3, 4)
    assert RING.slot_of(positions).tolist() == [[0, 1, 2, 3], [4, 5, 2, 3], [4, 5, 2, 3]]
