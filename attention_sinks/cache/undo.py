"""The undo log of one layer: what left its ring while the cache was recording, so that a rollback can bring it back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..plan.block import BlockPlan
from ..plan.reach import Reach
from ..plan.token import TokenPlan
from .columns import take
from .history import RECORDED_COLUMNS

NOWHERE = -1


@dataclass(frozen=True)
class Evicted:
    """Tokens that left the ring of a layer during one call, oldest first.

    Attributes
    ----------
    keys, values : torch.Tensor
        [batch, num_key_value_heads, m, head_dim], as they lay in the ring.
    positions : torch.Tensor
        [R, m] stream positions; `NOWHERE` in columns that hold nothing.
    origin : torch.Tensor
        [R, 1], the origin their keys were rotated with.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    origin: torch.Tensor

    @property
    def columns(self) -> int:
        return self.positions.shape[1]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.keys, self.values, self.positions, self.origin

    def select(self, indices: torch.Tensor) -> Evicted:
        def picked(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.shape[0] == 1 < self.keys.shape[0] else tensor.index_select(0, indices)

        keys, values = (tensor.index_select(0, indices) for tensor in (self.keys, self.values))
        return Evicted(keys, values, picked(self.positions), picked(self.origin))


def evicted_by_token(keys: torch.Tensor, values: torch.Tensor, plan: TokenPlan, reach: Reach) -> Evicted | None:
    """What the one new token of every row is about to overwrite in the ring `keys`, `values`; None while it is free."""
    if plan.used < reach.visible_size:
        return None
    positions = plan.position - reach.window_size - 1
    gone = positions >= reach.sink_size
    if plan.active is not None:
        gone = gone & plan.active[:, None]
    slot = plan.slot
    slots = torch.tensor([slot], dtype=torch.long, device=keys.device) if isinstance(slot, int) else slot
    origin = plan.position - plan.model_position
    held = take(keys, slots[:, None]), take(values, slots[:, None])
    return Evicted(*held, positions.masked_fill(~gone, NOWHERE), origin)


def evicted_by_block(ring: tuple, layout: tuple, plan: BlockPlan, reach: Reach) -> Evicted | None:
    """What a block of new columns pushes out: cached tokens, from `ring`, and its own older ones, from `layout`.

    Both are (keys, values): the buffers before the call, in slots, and past and new as `plan` lays them out.
    """
    columns = plan.model_position.shape[1]
    start, last = plan.position, plan.position + plan.count - 1
    most = min(columns, RECORDED_COLUMNS)
    positions = last - reach.window_size - most + torch.arange(most, dtype=torch.long, device=start.device)
    gone = positions >= (start - reach.window_size - 1).clamp(min=reach.sink_size)
    if not gone.any():
        return None
    first_new = layout[0].shape[2] - plan.count
    kept = [take(states, (first_new + positions - start).clamp(min=0)) for states in layout]
    if plan.past is not None:
        slots, new = reach.slot_of(positions.clamp(min=0)), (positions >= start)[:, None, :, None]
        kept = [torch.where(new, states, take(old, slots)) for states, old in zip(kept, ring, strict=True)]
    return Evicted(*kept, positions.masked_fill(~gone, NOWHERE), last - plan.model_position[:, -1:])


class UndoLog:
    """The evicted tokens of one layer, from old to new; a call's own are kept apart until the call is done."""

    def __init__(self) -> None:
        self.past: list[Evicted] = []
        self.new: list[Evicted] = []
        self._columns = 0

    def __bool__(self) -> bool:
        return bool(self.past or self.new)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for evicted in (*self.past, *self.new) for tensor in evicted.tensors)

    def add(self, evicted: Evicted | None) -> None:
        """Note what the call under way pushes out; of a long call no more than can be asked for."""
        if evicted is not None:
            self.new.append(evicted)
            while sum(part.columns for part in self.new[1:]) >= RECORDED_COLUMNS:
                self.new.pop(0)

    def commit(self) -> None:
        """The call is done: its evicted tokens join the others, the oldest are let go."""
        for evicted in self.new:
            self.past.append(evicted)
            self._columns += evicted.columns
        self.new.clear()
        self.trim(RECORDED_COLUMNS)

    def trim(self, columns: int) -> None:
        """Let go of calls all of whose tokens were evicted before the last `columns` columns."""
        while self.past and self._columns - self.past[0].columns >= columns:
            self._columns -= self.past.pop(0).columns

    def clear(self) -> None:
        self.past.clear()
        self.new.clear()
        self._columns = 0

    def take_back(self, oldest: torch.Tensor) -> list[Evicted]:
        """Give up every token at a stream position from `oldest` [batch, 1] on, in the order they were evicted."""
        returned, stays = [], []
        done = torch.zeros_like(oldest, dtype=torch.bool)  # rows that have shown an older token: there is no newer one
        while self.past and not done.all():
            evicted = self.past.pop()
            self._columns -= evicted.columns
            positions = evicted.positions.expand(oldest.shape[0], -1)
            back = positions >= oldest
            rest = positions.masked_fill(back, NOWHERE)
            has_older = (rest >= 0).any(dim=1, keepdim=True)
            done |= has_older
            if has_older.any():
                stays.append(replace(evicted, positions=rest))
            if back.any():
                returned.append(replace(evicted, positions=positions.masked_fill(~back, NOWHERE)))
        for evicted in reversed(stays):
            self.past.append(evicted)
            self._columns += evicted.columns
        return returned[::-1]

    def select(self, indices: torch.Tensor) -> None:
        self.past = [evicted.select(indices) for evicted in self.past]
