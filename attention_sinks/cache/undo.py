"""The undo log of one layer: what left its ring while the cache was recording, for a rollback to bring back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from ..plan.block import BlockPlan
from ..plan.reach import Reach
from ..plan.token import TokenPlan
from .columns import KeysValues, take
from .stream_state import RECORDED_COLUMNS

NOWHERE = -1
"""The stream position of a column that holds no token."""


@dataclass(frozen=True)
class Evicted:
    """Tokens that left the ring of a layer during one call, from old to new.

    Attributes
    ----------
    keys, values : torch.Tensor
        [batch, num_key_value_heads, m, head_dim], as they lay in the ring.
    positions : torch.Tensor
        [R, m] stream positions. A column that holds nothing has `NOWHERE`.
    origin : torch.Tensor
        [R, 1] or [R, m], the origins with which their keys were rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    origin: torch.Tensor

    @property
    def columns(self) -> int:
        """How many columns were evicted, m."""
        return self.positions.shape[1]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.keys, self.values, self.positions, self.origin

    def select(self, indices: torch.Tensor) -> Evicted:
        """Return the tokens of the rows at `indices`, in that order."""

        def picked(tensor: torch.Tensor) -> torch.Tensor:
            for_all_rows = tensor.shape[0] == 1 and self.keys.shape[0] > 1
            return tensor if for_all_rows else tensor.index_select(0, indices)

        keys, values = (tensor.index_select(0, indices) for tensor in (self.keys, self.values))
        return Evicted(keys, values, picked(self.positions), picked(self.origin))

    def widened(self, columns: int) -> tuple[torch.Tensor, ...]:
        """Return its tensors for all rows, with so many columns in all; those put before the others hold nothing."""
        rows, missing = self.keys.shape[0], columns - self.columns
        keys, values = (pad(states, (0, 0, missing, 0)) for states in (self.keys, self.values))
        positions = pad(self.positions.expand(rows, -1), (missing, 0), value=NOWHERE)
        return keys, values, positions, pad(self.origin.expand(rows, self.columns), (missing, 0))

    def put_back(self, keys: torch.Tensor, values: torch.Tensor, reach: Reach) -> None:
        """Write the tokens into their slots of the buffers `keys` and `values`."""
        positions = self.positions.expand(self.keys.shape[0], -1)
        row, column = (positions >= 0).nonzero(as_tuple=True)
        slot = reach.slot_of(positions[row, column])
        keys[row, :, slot] = self.keys[row, :, column]
        values[row, :, slot] = self.values[row, :, column]


def evicted_by_token(keys: torch.Tensor, values: torch.Tensor, plan: TokenPlan, reach: Reach) -> Evicted | None:
    """Return what the one new token of every row is about to overwrite in the ring `keys`, `values`.

    None says that the slot is free.
    """
    if plan.used < reach.visible_size:
        return None
    positions = plan.position - reach.window_size - 1
    gone = positions >= reach.sink_size
    if plan.active is not None:
        gone = gone & plan.active[:, None]
    slot = plan.slot[:, None]
    overwritten = take(keys, slot), take(values, slot)
    return Evicted(*overwritten, positions.masked_fill(~gone, NOWHERE), plan.position - plan.model_position)


def evicted_by_block(ring: KeysValues | None, layout: KeysValues, plan: BlockPlan, reach: Reach) -> Evicted | None:
    """Return what a block of new columns pushes out, which are cached tokens and older ones of the block itself.

    Parameters
    ----------
    ring : tuple of torch.Tensor or None
        Keys and values by slots, as they were before the call. The first call of a stream has None.
    layout : tuple of torch.Tensor
        Keys and values in the key layout of `plan`.

    Returns
    -------
    Evicted or None
        None when the block pushes nothing out.
    """
    columns = plan.model_position.shape[1]
    start, last = plan.position, plan.position + plan.count - 1
    most = min(columns, RECORDED_COLUMNS)
    positions = last - reach.window_size - most + torch.arange(most, dtype=torch.long, device=start.device)
    gone = positions >= (start - reach.window_size - 1).clamp(min=reach.sink_size)
    if not gone.any():
        return None
    first_new = layout[0].shape[2] - plan.count
    columns_of_new = (first_new + positions - start).clamp(min=0)
    keys, values = take(layout[0], columns_of_new), take(layout[1], columns_of_new)
    if ring is not None and plan.past is not None:
        slots, new = reach.slot_of(positions.clamp(min=0)), (positions >= start)[:, None, :, None]
        keys, values = torch.where(new, keys, take(ring[0], slots)), torch.where(new, values, take(ring[1], slots))
    return Evicted(keys, values, positions.masked_fill(~gone, NOWHERE), last - plan.model_position[:, -1:])


@dataclass(frozen=True)
class UndoLog:
    """The evicted tokens of one layer, from old to new. It is immutable: a layer changes its log in one assignment.

    Attributes
    ----------
    past : tuple of Evicted
        What earlier calls pushed out.
    new : tuple of Evicted
        What the call under way has pushed out.
    columns : int
        How many columns `past` has.
    """

    past: tuple[Evicted, ...] = ()
    new: tuple[Evicted, ...] = ()
    columns: int = 0

    def __bool__(self) -> bool:
        return bool(self.past or self.new)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for evicted in (*self.past, *self.new) for tensor in evicted.tensors)

    def add(self, evicted: Evicted | None) -> UndoLog:
        """Return the log when the call under way pushes this out, too, but no more than can be asked for."""
        if evicted is None:
            return self
        new = (*self.new, evicted)
        while sum(part.columns for part in new[1:]) >= RECORDED_COLUMNS:
            new = new[1:]
        return replace(self, new=new)

    def commit(self) -> UndoLog:
        """Return the log when the call is done: what it pushed out is past, and the oldest tokens are let go of."""
        columns = self.columns + sum(evicted.columns for evicted in self.new)
        return UndoLog((*self.past, *self.new), (), columns).trim(RECORDED_COLUMNS)

    def trim(self, columns: int) -> UndoLog:
        """Return the log without calls all of whose tokens were evicted before the last `columns` columns."""
        left, gone = self.columns, 0
        while gone < len(self.past) and left - self.past[gone].columns >= columns:
            left -= self.past[gone].columns
            gone += 1
        return UndoLog(self.past[gone:], self.new, left)

    def take_back(self, oldest: torch.Tensor) -> tuple[UndoLog, list[Evicted]]:
        """Return the log without the tokens at a stream position from `oldest` [batch, 1] on, and these, old to new."""
        past, columns = list(self.past), self.columns
        returned, stays = [], []
        done = torch.zeros_like(oldest, dtype=torch.bool)  # rows with an older token: what lies before is older still
        while past and not done.all():
            evicted = past.pop()
            columns -= evicted.columns
            positions = evicted.positions.expand(oldest.shape[0], -1)
            back = positions >= oldest
            rest = positions.masked_fill(back, NOWHERE)
            has_older = (rest >= 0).any(dim=1, keepdim=True)
            done |= has_older
            if has_older.any():
                stays.append(replace(evicted, positions=rest))
                columns += evicted.columns
            if back.any():
                returned.append(replace(evicted, positions=positions.masked_fill(~back, NOWHERE)))
        return UndoLog((*past, *reversed(stays)), self.new, columns), returned[::-1]

    @classmethod
    def joined(cls, parts: Sequence[tuple[UndoLog, int]]) -> UndoLog:
        """Return one log of the rows of all `parts`, each a log and its number of rows. The newest columns meet.

        It is on the device of the first log that holds anything.
        """
        columns = max(log.columns for log, _ in parts)
        if not columns:
            return cls()
        like = next(log.past[0] for log, _ in parts if log.past)
        wide = [log._as_one(like, rows).widened(columns) for log, rows in parts]
        kept = min(columns, RECORDED_COLUMNS)
        keys, values, positions, origin = (torch.cat(tensors) for tensors in zip(*wide, strict=True))
        last = Evicted(keys[:, :, -kept:], values[:, :, -kept:], positions[:, -kept:], origin[:, -kept:])
        return cls((last,), (), kept)

    def _as_one(self, like: Evicted, rows: int) -> Evicted:
        """Return what all calls pushed out of the `rows` rows as if one call had; on the device of `like`."""
        each = [evicted.widened(evicted.columns) for evicted in self.past]
        if not each:
            no_keys, no_values = (states[:1, :, :0].expand(rows, -1, -1, -1) for states in (like.keys, like.values))
            none = like.positions.new_empty(rows, 0)
            return Evicted(no_keys, no_values, none, none)
        keys, values = (torch.cat([tensors[i] for tensors in each], dim=2) for i in (0, 1))
        positions, origin = (torch.cat([tensors[i] for tensors in each], dim=1) for i in (2, 3))
        device = like.keys.device
        return Evicted(keys.to(device), values.to(device), positions.to(device), origin.to(device))

    def select(self, indices: torch.Tensor) -> UndoLog:
        """Return the log of the rows at `indices`, in that order."""
        return replace(self, past=tuple(evicted.select(indices) for evicted in self.past))
