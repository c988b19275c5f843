"""Where the rows of a batch stand: tokens seen, and what is subtracted before positions become angles."""

import pytest

from support.plans import counters_at

ROOM = 5  # two sinks and a window of three


def test_new_rows_start_at_zero():
    assert type(counters_at()).empty(3) == counters_at(0, 0, 0)
    assert len(counters_at(4, 4)) == 2


def test_advance_counts_each_row_by_itself():
    assert counters_at(4, 9).advance((3, 0)) == counters_at(7, 9)


def test_advance_makes_new_counters():
    counters = counters_at(4, 9)
    counters.advance((3, 0))
    assert counters == counters_at(4, 9)


def test_advance_leaves_the_origin():
    assert counters_at(9, moved=(3,)).advance((2,)) == counters_at(11, moved=(3,))


def test_select_reorders_and_repeats():
    counters = counters_at(4, 9, 20, moved=(0, 3, 14))
    assert counters.select([2, 0, 2]) == counters_at(20, 4, 20, moved=(14, 0, 14))


def test_joined_counters_keep_their_order():
    parts = [counters_at(4, 9, moved=(0, 3)), counters_at(20, moved=(14,)), type(counters_at()).empty(1)]
    assert type(parts[0]).joined(parts) == counters_at(4, 9, 20, 0, moved=(0, 3, 14, 0))


# ---- the origin


@pytest.mark.parametrize("seen, new_tokens", [(0, 12), (5, 7), (11, 1)])
def test_angles_below_the_limit_stay(seen, new_tokens):
    """Model positions stay below 2 (room + 1) = 12: the last token of each of these calls is at 11."""
    assert counters_at(seen).shift_for(new_tokens, ROOM) == (0,)


@pytest.mark.parametrize("seen, new_tokens, shift", [(12, 1, 7), (11, 2, 6), (9, 4, 4)])
def test_at_the_limit_the_query_comes_back_to_the_end_of_the_cache(seen, new_tokens, shift):
    counters = counters_at(seen)
    assert counters.shift_for(new_tokens, ROOM) == (shift,)
    assert counters.rebase((shift,)) == counters_at(seen, moved=(shift,))
    assert seen - shift == ROOM


def test_the_limit_counts_from_the_origin():
    assert counters_at(100, moved=(90,)).shift_for(1, ROOM) == (0,)
    assert counters_at(102, moved=(90,)).shift_for(1, ROOM) == (7,)


def test_one_row_at_the_limit_moves_every_row_that_can():
    """The short row is at position 3 of its own cache, and stays."""
    assert counters_at(12, 8, 3).shift_for(1, ROOM) == (7, 3, 0)


def test_origins_add_up():
    assert counters_at(24, moved=(7,)).rebase((12,)) == counters_at(24, moved=(19,))


# ---- rollback


def test_back_is_the_other_way_of_advance():
    assert counters_at(4, 9).advance((3, 2)).back((3, 2), ROOM) == counters_at(4, 9)


def test_back_takes_an_origin_that_is_too_far_with_it():
    """At t = 12 the origin was moved to 7. At t = 8 the model position must be 5 at least: the origin is 3."""
    assert counters_at(12, moved=(7,)).back((4,), ROOM) == counters_at(8, moved=(3,))
    assert counters_at(20, moved=(7,)).back((4,), ROOM) == counters_at(16, moved=(7,))


def test_back_to_a_short_stream_has_no_origin():
    assert counters_at(12, moved=(7,)).back((9,), ROOM) == counters_at(3)
