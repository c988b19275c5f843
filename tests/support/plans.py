"""Small plans for tests to read: counters by their numbers, and a block's masks as lists of stream positions."""

import torch

from attention_sinks.plan.block import plan_block
from attention_sinks.plan.counters import Counters
from attention_sinks.plan.reach import Reach
from attention_sinks.plan.token import plan_token

RING = Reach(2, 3)
"""Two sinks in slots 0 and 1, and a ring of W + 1 = 4 slots: 2, 3, 4 and 5."""


def counters_at(*seen, moved=None):
    """Counters of rows that have fed `seen` tokens each; `moved` are their position origins (default: all 0)."""
    return Counters(seen, (0,) * len(seen) if moved is None else moved)


def slot(reach, position):
    """Slot of the token at one stream position."""
    return int(reach.slot_of(torch.tensor(position)))


def token_plan(*seen, moved=None, active=None, reach=RING):
    return plan_token(counters_at(*seen, moved=moved), None if active is None else torch.tensor(active), reach)


def block_plan(*seen, new, columns=None, moved=None, reach=RING, block_size=100):
    """A call of `columns` columns (default: no padding), of which the last `new[row]` are tokens of the row."""
    return plan_block(counters_at(*seen, moved=moved), new, columns or max(new), reach, block_size)


def visible_tokens(plan, row=0):
    """For every query of a block plan, the stream positions of all keys it sees, in order."""
    seen = []
    for block in plan.query_blocks:
        for query in range(block.queries.stop - block.queries.start):
            window = plan.tokens[row, block.keys][block.bias[row, 0, 0, query] == 0]
            sinks = (block.sink_bias[row, 0, 0, query] == 0).nonzero()[:, 0]
            seen.append(sorted([*sinks.tolist(), *window.tolist()]))
    return seen
