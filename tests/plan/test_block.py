"""A block: several new tokens per row. Two sinks and a window of three; stream positions say what a query sees.

The key layout of a block is the sinks, the window before it from old to new, and the new columns. Without a past it is
the new columns.
"""

import pytest

from attention_sinks.plan.reach import Reach
from support.plans import RING, block_plan, visible_tokens

DENSE = Reach(2, 3, dense=True)
CHUNKED = Reach(0, 3, chunked=True)


# ---- the first call


def test_a_first_call_that_fits():
    plan = block_plan(0, new=[4])
    assert plan.tokens.tolist() == plan.query_position.tolist() == plan.cache_position.tolist() == [[0, 1, 2, 3]]
    assert plan.past is None and plan.idle is None and plan.delta is None
    assert visible_tokens(plan) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_a_first_call_longer_than_the_cache():
    plan = block_plan(0, new=[8])
    assert visible_tokens(plan) == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 3, 4, 5, 6],  # 2 has left the window
        [0, 1, 4, 5, 6, 7],
    ]
    assert plan.model_position.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert plan.cache_position.tolist() == [[0, 1, 2, 3, 4, 5, 5, 5]]
    assert plan.delta.tolist() == [[0, 0, 0, 0, 0, 0, 1, 2]]


def test_what_is_kept_goes_where_steps_would_have_put_it():
    """The slots hold 0 1 | 6 7 4 5 after eight tokens. In a first call, token t has place t in the key layout."""
    assert block_plan(0, new=[8]).kept.tolist() == [[0, 1, 6, 7, 4, 5]]


def test_slots_that_nothing_goes_to_take_place_0():
    assert block_plan(0, new=[4]).kept.tolist() == [[0, 1, 2, 3, 0, 0]]


# ---- calls with a past


def test_the_key_layout_of_a_call_with_a_past():
    """Seven tokens were fed: the slots hold 0 1 | 6 3 4 5, of which the window before token 7 is 4, 5 and 6."""
    plan = block_plan(7, new=[3])
    assert plan.tokens.tolist() == [[0, 1, 4, 5, 6, 7, 8, 9]]
    assert plan.past.tolist() == [[4, 5, 2]]  # the slots to read the window from, from old to new
    assert plan.sinks.tolist() == [[0, 1]]
    assert plan.filled.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert visible_tokens(plan) == [[0, 1, 4, 5, 6, 7], [0, 1, 5, 6, 7, 8], [0, 1, 6, 7, 8, 9]]


def test_what_is_kept_of_past_and_new():
    """Afterwards the slots hold 0 1 | 6 7 8 9, which lie at the places 0, 1 and 4 to 7 of the key layout."""
    assert block_plan(7, new=[3]).kept.tolist() == [[0, 1, 4, 5, 6, 7]]


def test_positions_of_a_call_with_a_past():
    plan = block_plan(7, new=[3])
    assert plan.model_position.tolist() == [[7, 8, 9]]
    assert plan.cache_position.tolist() == [[5, 5, 5]]
    assert plan.delta.tolist() == [[2, 3, 4]]


def test_the_origin_moves_model_positions_alone():
    plan = block_plan(7, new=[3], moved=(2,))
    assert plan.model_position.tolist() == [[5, 6, 7]]
    assert plan.delta.tolist() == [[0, 1, 2]]
    assert plan.cache_position.tolist() == [[5, 5, 5]] and plan.query_position.tolist() == [[7, 8, 9]]


def test_a_sink_among_the_new_tokens():
    """One token was fed, so the second sink is the first new column, behind the places of sinks and window."""
    plan = block_plan(1, new=[2])
    assert plan.tokens.tolist() == [[0, 1, -2, -1, 0, 1, 2]]
    assert plan.filled.tolist() == [0, 5, 6]  # place 1 is kept for a sink that is not cached yet
    assert plan.sinks.tolist() == [[0, 5]]
    assert plan.kept.tolist() == [[0, 5, 6, 0, 0, 0]]
    assert visible_tokens(plan) == [[0, 1], [0, 1, 2]]


# ---- rows


def test_padding_is_on_the_left():
    """Row 1 has one token in three columns; its padding has negative positions and is seen by nobody."""
    plan = block_plan(0, 0, new=[3, 1])
    assert plan.count.tolist() == [[3], [1]]
    assert plan.query_position.tolist() == plan.tokens.tolist() == [[0, 1, 2], [-2, -1, 0]]
    assert plan.cache_position.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert visible_tokens(plan, row=0) == [[0], [0, 1], [0, 1, 2]]
    assert visible_tokens(plan, row=1) == [[], [], [0]]
    assert plan.sinks.tolist() == [[0, 1], [2, 0]]  # row 1 has its first sink at place 2 and no second one yet


def test_padding_between_past_and_new():
    """Row 1 has seen seven tokens and feeds one: two columns of padding lie between token 6 and token 7."""
    plan = block_plan(7, 7, new=[3, 1])
    assert plan.tokens[1].tolist() == [0, 1, 4, 5, 6, 5, 6, 7]
    assert visible_tokens(plan, row=1)[2] == [0, 1, 4, 5, 6, 7]
    assert plan.kept[1].tolist() == [0, 1, 4, 7, 2, 3]  # the slots hold 0 1 | 6 7 4 5


def test_places_that_any_row_fills():
    """Row 1 has one cached token where row 0 has five; the key layout is as wide as for row 0."""
    plan = block_plan(7, 1, new=[2, 2])
    assert plan.tokens.tolist() == [[0, 1, 4, 5, 6, 7, 8], [0, 1, -2, -1, 0, 1, 2]]
    assert plan.filled.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert visible_tokens(plan, row=1) == [[0, 1], [0, 1, 2]]


def test_a_row_without_a_new_token_is_idle():
    plan = block_plan(7, 7, new=[2, 0])
    assert plan.idle.tolist() == [False, True]
    assert block_plan(7, 7, new=[2, 1]).idle is None


def test_rows_that_agree_share_one_plan():
    assert block_plan(7, 7, new=[3, 3]).tokens.shape == (1, 8)
    assert block_plan(7, 6, new=[3, 3]).tokens.shape == (2, 8)


# ---- other reaches


def test_dense_queries_see_all_that_was_cached_and_each_other():
    plan = block_plan(7, new=[3], reach=DENSE)
    assert visible_tokens(plan) == [[0, 1, 4, 5, 6, 7], [0, 1, 4, 5, 6, 7, 8], [0, 1, 4, 5, 6, 7, 8, 9]]
    assert plan.cache_position.tolist() == [[5, 6, 7]]
    assert plan.delta.tolist() == [[2, 2, 2]]


def test_a_dense_first_call_is_plain_causal_attention():
    plan = block_plan(0, new=[8], reach=DENSE)
    assert visible_tokens(plan) == [list(range(t + 1)) for t in range(8)]
    assert plan.delta is None


def test_dense_keeps_what_streaming_keeps():
    assert block_plan(7, new=[3], reach=DENSE).kept.tolist() == block_plan(7, new=[3]).kept.tolist()


def test_chunked_queries_see_nothing_before_their_chunk():
    """Chunks of W + 1 = 4 tokens."""
    assert visible_tokens(block_plan(0, new=[6], reach=CHUNKED)) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [4, 5]]
    assert visible_tokens(block_plan(6, new=[3], reach=CHUNKED)) == [[4, 5, 6], [4, 5, 6, 7], [8]]


# ---- query blocks


def test_query_blocks_read_few_keys():
    """Two queries at a time; the keys of a query block start W places before its first query."""
    blocks = block_plan(0, new=[8], block_size=2).query_blocks
    assert [(block.queries.start, block.queries.stop) for block in blocks] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [(block.keys.start, block.keys.stop) for block in blocks] == [(0, 2), (0, 4), (1, 6), (3, 8)]
    assert blocks[3].bias.shape == (1, 1, 1, 2, 5) and blocks[3].sink_bias.shape == (1, 1, 1, 2, 2)


def test_query_blocks_after_a_past():
    """The key layout is 2 sinks, 3 of the window, 5 new. Keys start W before the first query, without sinks."""
    blocks = block_plan(7, new=[5], block_size=2).query_blocks
    assert [(block.keys.start, block.keys.stop) for block in blocks] == [(2, 7), (4, 9), (6, 10)]


@pytest.mark.parametrize("reach", [RING, DENSE, CHUNKED], ids=["streaming", "dense", "chunked"])
@pytest.mark.parametrize("seen, new", [((0,), [8]), ((7,), [5]), ((1,), [6]), ((7, 2), [5, 3])])
def test_the_size_of_query_blocks_does_not_matter(seen, new, reach):
    whole = block_plan(*seen, new=new, reach=reach)
    for block_size in (1, 2, 3):
        plan = block_plan(*seen, new=new, reach=reach, block_size=block_size)
        for row in range(len(seen)):
            assert visible_tokens(plan, row) == visible_tokens(whole, row)
