"""How far a cache can be taken back: which of the last columns were tokens, and what its rows still hold."""

import pytest
import torch

from attention_sinks.cache.stream_state import RECORDED_COLUMNS, History
from support.plans import counters_at

ROOM = 6  # two sinks, a window of three and the current token: so many slots
REAL = torch.tensor([[False, True, True], [True, True, True]])


class Fed:
    """A history and the counters it belongs to, fed call by call."""

    def __init__(self, batch_size=1):
        self.counters, self.history = counters_at(*[0] * batch_size), History.empty(batch_size, ROOM)

    def feed(self, columns, real=None, recording=False):
        counts = (columns,) * len(self.counters) if real is None else tuple(real.sum(1).tolist())
        after = self.counters.advance(counts)
        self.history = self.history.advance(self.counters, after, columns, real, recording)
        self.counters = after
        return self

    def take_back(self, columns):
        self.counters = self.counters.back(self.history.count(columns), ROOM - 1)
        self.history = self.history.back(self.counters, columns)
        return self

    @property
    def available(self):
        return self.history.available(self.counters)


def test_nothing_was_fed():
    assert Fed().available == 0 and Fed().history.length == 0


def test_count_tells_tokens_from_padding():
    """Row 0 had its padding in the oldest of three columns."""
    history = Fed(2).feed(3, REAL).history
    assert history.length == 3
    assert history.count(3) == (2, 3)
    assert history.count(2) == (2, 2)
    assert history.count(0) == (0, 0)


def test_newer_columns_count_first():
    fed = Fed(2).feed(3, REAL).feed(1, torch.tensor([[True], [False]]))
    assert fed.history.count(1) == (1, 0)
    assert fed.history.count(2) == (2, 1)
    assert fed.history.count(4) == (3, 3)


def test_columns_that_nobody_noted_are_forgotten():
    """Ten columns were fed in compiled steps, which remember the newest three."""
    counters = counters_at(0, 0)
    history = History.empty(2, ROOM).advance(counters, counters.advance((9, 10)), 10, REAL, False)
    assert history.length == 3 and history.count(3) == (2, 3)


def test_a_stream_that_fits_can_be_taken_back_whole():
    assert Fed().feed(4).available == 4
    assert Fed().feed(4).feed(1).feed(1).available == ROOM


@pytest.mark.parametrize("calls", [[7], [6, 1], [6, 1, 1, 1], [3, 10]])
def test_beyond_the_room_one_token_can_be_taken_back(calls):
    """The slot that the next token will take still holds the one that was evicted last."""
    fed = Fed()
    for columns in calls:
        fed.feed(columns)
    assert fed.available == 1


def test_one_can_be_taken_back_once():
    assert Fed().feed(10).take_back(1).available == 0


def test_what_is_recorded_can_be_taken_back_too():
    assert Fed().feed(10).feed(3, recording=True).available == 4
    assert Fed().feed(4).feed(30, recording=True).available == 34


def test_recording_remembers_so_many_columns():
    assert Fed().feed(2000, recording=True).available == RECORDED_COLUMNS + 1


def test_padding_can_always_be_taken_back():
    """Neither row can lose more than one token: row 0 has two columns of padding on top, row 1 none of it."""
    padding = torch.tensor([[True, False, False], [True, False, False]])
    assert Fed(2).feed(10).feed(3, padding).available == 3
    uneven = torch.tensor([[True, False, False], [True, True, True]])
    assert Fed(2).feed(10).feed(3, uneven).available == 1


def test_the_row_with_least_decides():
    fed = Fed(2).feed(5).feed(4, torch.tensor([[True] * 4, [False] * 4]))
    assert fed.counters == counters_at(9, 5)
    assert fed.available == 1


def test_back_forgets_the_columns():
    fed = Fed(2).feed(3, REAL).feed(2).take_back(2)
    assert fed.history.length == 3
    assert fed.history.count(3) == (2, 3)
    assert fed.counters == counters_at(2, 3)


def test_back_within_the_room_frees_the_whole_stream():
    """A recorded stream that has come back to a few tokens holds all of them."""
    fed = Fed().feed(5).feed(20, recording=True).take_back(21)
    assert fed.counters == counters_at(4) and fed.available == 4


def test_a_call_that_broke_off_has_written_over_the_spare_slot():
    fed = Fed().feed(10)
    assert fed.history.without_evicted(fed.counters).available(fed.counters) == 0


def test_select_takes_rows_with_their_columns():
    fed = Fed(2).feed(3, REAL)
    assert fed.history.select([1, 0, 0]).count(3) == (3, 2, 2)


# ---- rows of several histories


def test_joined_histories_meet_at_their_newest_columns():
    """The shorter one counts as padded before, and is known from its beginning."""
    long, short = Fed(2).feed(3).feed(3, REAL), Fed().feed(2)
    joined = History.joined([short.history, long.history])
    assert joined.columns == joined.length == 6
    assert [joined.count(columns) for columns in (2, 3, 6)] == [(2, 2, 2), (2, 2, 3), (2, 5, 6)]
    assert joined.available(counters_at(2, 5, 6)) == 6


def test_a_joined_history_knows_no_more_than_its_parts():
    """Nobody noted all columns of the second one, which were fed in compiled steps."""
    counters = counters_at(0, 0)
    noted = History.empty(2, ROOM).advance(counters, counters.advance((9, 10)), 10, REAL, False)
    assert History.joined([Fed().feed(20).history, noted]).length == 3
    assert History.joined([noted, History.empty(1, ROOM)]).length == 3


def test_a_joined_row_goes_back_no_further_than_alone():
    full, short = Fed().feed(20), Fed().feed(4)
    joined = History.joined([full.history, short.history])
    assert joined.available(counters_at(20, 4)) == full.available == 1
