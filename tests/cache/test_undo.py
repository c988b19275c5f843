"""What leaves the ring of a layer while its cache records, and how it comes back. Keys are their stream positions."""

import torch

from attention_sinks.cache.stream_state import RECORDED_COLUMNS
from attention_sinks.cache.undo import NOWHERE, Evicted, UndoLog, evicted_by_block, evicted_by_token
from support.plans import RING, block_plan, slot, token_plan


def states(*rows):
    """Keys or values [batch, 1 head, n, 1 number] that hold these numbers."""
    return torch.tensor(rows, dtype=torch.float)[:, None, :, None]


def ring_after(*fed):
    """The buffers of rows that were fed so many tokens; free slots hold -1."""
    rows = [[-1] * RING.visible_size for _ in fed]
    for row, tokens in zip(rows, fed, strict=True):
        for token in range(tokens):
            row[slot(RING, token)] = token
    return states(*rows)


def numbers(tensor):
    return tensor[:, 0, :, 0].int().tolist()


def gone(*positions):
    """One row's evicted tokens."""
    keys = states(positions)
    return Evicted(keys, -keys, torch.tensor([positions]), torch.zeros(1, 1, dtype=torch.long))


# ---- by a step


def test_a_step_evicts_nothing_while_slots_are_free():
    ring = ring_after(4)
    assert evicted_by_token(ring, -ring, token_plan(4), RING) is None


def test_a_step_into_the_last_free_slot_evicts_no_token():
    ring = ring_after(5)
    assert evicted_by_token(ring, -ring, token_plan(5), RING).positions.tolist() == [[NOWHERE]]


def test_a_step_evicts_what_lies_in_its_slot():
    """Token 8 goes to slot 4, over token 4."""
    ring = ring_after(8)
    evicted = evicted_by_token(ring, -ring, token_plan(8), RING)
    assert evicted.positions.tolist() == numbers(evicted.keys) == [[4]]
    assert numbers(evicted.values) == [[-4]]


def test_the_origin_is_noted_with_the_key():
    """It says how the key was rotated."""
    ring = ring_after(8)
    evicted = evicted_by_token(ring, -ring, token_plan(8, moved=(3,)), RING)
    assert evicted.tensors[-1].tolist() == [[3]]


def test_rows_evict_their_own():
    ring = ring_after(6, 9, 9)
    evicted = evicted_by_token(ring, -ring, token_plan(6, 9, 9, active=[True, True, False]), RING)
    assert evicted.positions.tolist() == [[2], [5], [NOWHERE]]  # the last row sits out
    assert numbers(evicted.keys)[:2] == [[2], [5]]


# ---- by a block


def test_a_block_evicts_from_the_ring():
    """The slots hold 0 1 | 6 3 4 5 and become 0 1 | 6 7 8 9."""
    plan, ring = block_plan(7, new=[3]), ring_after(7)
    layout = states(plan.tokens[0].tolist())
    evicted = evicted_by_block((ring, -ring), (layout, -layout), plan, RING)
    assert evicted.positions.tolist() == numbers(evicted.keys) == [[3, 4, 5]]


def test_a_long_block_evicts_its_own_tokens_too():
    """3 to 6 were in the ring, 7 to 10 came and went within the call; 11 to 14 stay."""
    plan, ring = block_plan(7, new=[8]), ring_after(7)
    layout = states(plan.tokens[0].tolist())
    evicted = evicted_by_block((ring, -ring), (layout, -layout), plan, RING)
    assert evicted.positions.tolist() == numbers(evicted.keys) == [[3, 4, 5, 6, 7, 8, 9, 10]]
    assert numbers(evicted.values) == [[-3, -4, -5, -6, -7, -8, -9, -10]]


def test_a_block_notes_the_origin_too():
    plan, ring = block_plan(7, new=[3], moved=(2,)), ring_after(7)
    layout = states(plan.tokens[0].tolist())
    assert evicted_by_block((ring, -ring), (layout, -layout), plan, RING).tensors[-1].tolist() == [[2]]


def test_a_first_block_evicts_its_own_tokens():
    """Sinks never leave: of ten tokens, 2 to 5 do."""
    plan, ring = block_plan(0, new=[10]), ring_after(0)
    layout = states(plan.tokens[0].tolist())
    evicted = evicted_by_block((ring, -ring), (layout, -layout), plan, RING)
    left = evicted.positions >= 0
    assert evicted.positions[left].tolist() == evicted.keys[:, 0, :, 0][left].tolist() == [2, 3, 4, 5]


def test_a_block_that_fits_evicts_nothing():
    plan, ring = block_plan(0, new=[6]), ring_after(0)
    layout = states(plan.tokens[0].tolist())
    assert evicted_by_block((ring, -ring), (layout, -layout), plan, RING) is None


# ---- the log


def log_of(*calls):
    log = UndoLog()
    for positions in calls:
        log = log.add(gone(*positions)).commit()
    return log


def returned(log, oldest):
    """The log without the tokens from `oldest` on, and these."""
    log, back = log.take_back(torch.tensor([[oldest]]))
    return log, [evicted.positions[0].tolist() for evicted in back]


def test_an_empty_log():
    assert not UndoLog() and returned(UndoLog(), 0) == (UndoLog(), [])


def test_tokens_come_back_in_the_order_they_left():
    log = log_of([2], [3], [4, 5])
    log, back = returned(log, 3)
    assert back == [[3], [4, 5]]
    log, back = returned(log, 0)
    assert back == [[2]] and not log


def test_of_a_call_only_the_tokens_from_the_oldest_on():
    log = log_of([2, 3, 4, 5])
    log, back = returned(log, 4)
    assert back == [[NOWHERE, NOWHERE, 4, 5]]
    assert returned(log, 2)[1] == [[2, 3, NOWHERE, NOWHERE]]


def test_a_call_under_way_is_not_given_back():
    """It may still fail: then the log is as it was."""
    log = log_of([2])
    log, back = returned(log.add(gone(3)), 0)
    assert back == [[2]]
    assert log  # the call's own token is still noted
    assert returned(log.commit(), 0)[1] == [[3]]


def test_a_step_that_evicted_nothing_is_not_noted():
    assert not UndoLog().add(None).commit()


def test_rows_come_back_each_as_far_as_asked():
    keys = states([2, 3], [7, 8])
    log = UndoLog().add(Evicted(keys, -keys, torch.tensor([[2, 3], [7, 8]]), torch.zeros(2, 1, dtype=torch.long)))
    _, (evicted,) = log.commit().take_back(torch.tensor([[3], [9]]))
    assert evicted.positions.tolist() == [[NOWHERE, 3], [NOWHERE, NOWHERE]]


def test_what_stays_keeps_its_order():
    """Row 1 takes back its last token, row 0 nothing: what is left is given back from old to new."""
    log = UndoLog()
    for positions in ([[2], [7]], [[3], [8]]):
        keys = states(*positions)
        log = log.add(Evicted(keys, -keys, torch.tensor(positions), torch.zeros(2, 1, dtype=torch.long))).commit()
    log, first = log.take_back(torch.tensor([[4], [8]]))
    assert [evicted.positions.tolist() for evicted in first] == [[[NOWHERE], [8]]]
    _, rest = log.take_back(torch.tensor([[0], [0]]))
    assert [evicted.positions.tolist() for evicted in rest] == [[[2], [7]], [[3], [NOWHERE]]]


def test_of_a_long_call_no_more_is_kept_than_can_be_asked_for():
    """The call is worked off in chunks: with the second one there are enough columns without the first."""
    log = UndoLog().add(gone(2)).add(gone(*range(3, 3 + RECORDED_COLUMNS))).commit()
    assert len(returned(log, 0)[1]) == 1


def test_trim_lets_whole_calls_go():
    """Of five columns the last four are wanted, then the last three: 3 and 4 left in one call and stay together."""
    log = log_of([2], [3, 4], [5, 6])
    log = log.trim(4)
    assert len(log.past) == 2
    assert returned(log.trim(3), 0)[1] == [[3, 4], [5, 6]]


def test_select_reorders_rows():
    keys = states([2], [7])
    log = UndoLog().add(Evicted(keys, -keys, torch.tensor([[2], [7]]), torch.zeros(2, 1, dtype=torch.long))).commit()
    _, (evicted,) = log.select(torch.tensor([1, 0, 1])).take_back(torch.zeros(3, 1, dtype=torch.long))
    assert evicted.positions.tolist() == numbers(evicted.keys) == [[7], [2], [7]]


# ---- logs of several caches


def test_joined_logs_meet_at_their_newest_columns():
    """Row 0 has lost tokens in two calls of different origins, row 1 in one call, row 2 in none."""
    older, newer = gone(4, 5), gone(6)
    newer = Evicted(newer.keys, newer.values, newer.positions, newer.origin + 3)
    long, short = UndoLog((older, newer), (), 3), UndoLog((gone(9),), (), 1)
    log = UndoLog.joined([(long, 1), (short, 1), (UndoLog(), 1)])
    (whole,) = log.past
    nothing = [NOWHERE] * 3
    assert log.columns == 3 and whole.positions.tolist() == [[4, 5, 6], [NOWHERE, NOWHERE, 9], nothing]
    assert numbers(whole.keys) == [[4, 5, 6], [0, 0, 9], [0, 0, 0]] and torch.equal(whole.values, -whole.keys)
    assert whole.origin[0].tolist() == [0, 0, 3]


def test_joined_logs_keep_no_more_than_can_be_asked_for():
    log = UndoLog((gone(*range(RECORDED_COLUMNS)), gone(5)), (), RECORDED_COLUMNS + 1)
    joined = UndoLog.joined([(log, 1), (UndoLog(), 1)])
    assert joined.columns == joined.past[0].columns == RECORDED_COLUMNS
    assert joined.past[0].positions[0, [0, -1]].tolist() == [1, 5]


def test_joined_logs_of_nothing_are_nothing():
    assert UndoLog.joined([(UndoLog(), 2), (UndoLog(), 1)]) == UndoLog()
