"""A step: one new token per row. Two sinks and a window of three, so that the ring is slots 2 to 5."""

import pytest

from attention_sinks.plan.reach import Reach
from attention_sinks.plan.token import slot_order, slot_places
from support.plans import RING, token_plan


def test_the_first_token():
    plan = token_plan(0)
    assert plan.position.tolist() == [[0]]
    assert (plan.slot, plan.used) == (0, 1)
    assert plan.delta is None and plan.active is None and plan.visible is None


def test_a_stream_that_fits():
    """Stream position, model position, cache position and slot are all the same."""
    plan = token_plan(4)
    assert (plan.slot, plan.used) == (4, 5)
    assert plan.position.tolist() == plan.model_position.tolist() == plan.cache_position.tolist() == [[4]]
    assert plan.delta is None


def test_the_last_token_that_fits():
    plan = token_plan(5)
    assert (plan.slot, plan.used) == (5, 6)
    assert plan.cache_position.tolist() == [[5]] and plan.delta is None


def test_beyond_the_cache_the_sinks_follow_the_query():
    """The query at 9 is rotated to 9, and has to see the sinks as from cache position 5: they move 4 towards it."""
    plan = token_plan(9)
    assert (plan.slot, plan.used) == (5, 6)
    assert plan.model_position.tolist() == [[9]]
    assert plan.cache_position.tolist() == [[5]]
    assert plan.delta.tolist() == [[4]]


@pytest.mark.parametrize("seen, slot, delta", [(6, 2, 1), (7, 3, 2), (8, 4, 3), (9, 5, 4), (10, 2, 5)])
def test_slots_go_round_while_delta_grows(seen, slot, delta):
    plan = token_plan(seen)
    assert (plan.slot, plan.delta.tolist()) == (slot, [[delta]])


def test_rotation_starts_at_the_origin():
    """Moving the origin changes what is rotated by how much, and neither the slot nor the cache position."""
    plan = token_plan(9, moved=(3,))
    assert plan.position.tolist() == [[9]]
    assert plan.model_position.tolist() == [[6]]
    assert plan.delta.tolist() == [[1]]
    assert (plan.slot, plan.cache_position.tolist()) == (5, [[5]])


def test_an_origin_that_was_moved_as_far_as_it_goes_still_gives_a_delta():
    """None is for streams that never moved: their sinks have no table to be rotated by."""
    assert token_plan(9, moved=(4,)).delta.tolist() == [[0]]


def test_without_sinks_nothing_has_to_move():
    assert token_plan(9, reach=Reach(0, 3)).delta is None


def test_rows_that_agree_share_one_plan():
    plan = token_plan(9, 9, 9)
    assert plan.position.shape == (1, 1) and plan.slot == 5 and plan.visible is None


def test_rows_that_differ():
    """Row 0 has two of six slots in use, row 1 all of them."""
    plan = token_plan(1, 9)
    assert plan.position.tolist() == [[1], [9]]
    assert plan.slot.tolist() == [1, 5]
    assert plan.used == 6
    assert plan.delta.tolist() == [[0], [4]]
    assert plan.cache_position.tolist() == [[1], [5]]
    assert plan.visible.int().tolist() == [[[[1, 1, 0, 0, 0, 0]]], [[[1, 1, 1, 1, 1, 1]]]]


def test_no_mask_where_every_row_is_full():
    plan = token_plan(8, 9)
    assert plan.slot.tolist() == [4, 5] and plan.visible is None


def test_a_row_may_sit_out():
    plan = token_plan(9, 9, active=[True, False])
    assert plan.active.tolist() == [True, False]
    assert plan.slot.tolist() == [5, 5]  # the rows agree, yet each writes for itself


@pytest.mark.parametrize("seen, visible", [(3, [1, 1, 1, 1]), (4, [1, 0, 0, 0]), (6, [1, 1, 1, 0]), (7, [1, 1, 1, 1])])
def test_a_chunked_layer_sees_its_chunk_alone(seen, visible):
    """Chunks of W + 1 = 4 tokens: 0 to 3, 4 to 7. The query at 6 sees 4, 5 and itself; slot 3 still holds token 3."""
    plan = token_plan(seen, reach=Reach(0, 3, chunked=True))
    assert plan.visible.int().tolist() == [[[visible]]]


@pytest.mark.parametrize(
    "seen, order",
    [
        (3, [0, 1, 2, 3]),
        (5, [0, 1, 2, 3, 4, 5]),
        (6, [0, 1, 3, 4, 5, 2]),  # the ring holds 6 3 4 5
        (8, [0, 1, 5, 2, 3, 4]),  # the ring holds 6 7 8 5
        (9, [0, 1, 2, 3, 4, 5]),  # the ring holds 6 7 8 9
    ],
)
def test_slot_order_is_from_old_to_new(seen, order):
    assert slot_order(token_plan(seen), RING).tolist() == [order]


@pytest.mark.parametrize(
    "seen, places",
    [
        (5, [0, 1, 2, 3, 4, 5]),
        (6, [0, 1, 5, 2, 3, 4]),  # slot 2 holds the query, at cache position 5; slot 3 the oldest of the window
        (8, [0, 1, 3, 4, 5, 2]),
    ],
)
def test_slot_places_are_cache_positions(seen, places):
    """What relative positions (ALiBi) need: how far from the query each slot is, wherever the ring has got to."""
    assert slot_places(token_plan(seen), RING).tolist() == [places]
