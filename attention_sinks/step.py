"""What one model call does to the streams of a batch, worked out once for all layers of a kind.

Pure functions from counters to integers and masks: no keys, no angles, no model. Words: stream position t (how many
real tokens of its row came before), slot (where a key lies in memory), column (where a token stands in the input).

Slots: sinks in 0..S-1, then a ring of W+1 slots in which token s >= S lies at S + (s - S) mod (W+1).
Key layout of a block: the S sinks, the W newest cached tokens from old to new, the n new columns; a call without a past
has the new columns alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from .rows import Rows

MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Reach:
    """What the queries of a layer see: `sink_size` sinks (S) and `window_size` recent tokens (W) besides themselves.

    `dense` lets the tokens of one call see every cached token and each other whatever their distance.
    """

    sink_size: int
    window_size: int
    dense: bool = False

    @property
    def cached_size(self) -> int:
        return self.sink_size + self.window_size

    @property
    def visible_size(self) -> int:
        return self.sink_size + self.window_size + 1

    def slot_of(self, position):
        """Slot of the token at stream position `position` (int or tensor); sinks and the first window lie in order."""
        ring = (position - self.sink_size) % (self.window_size + 1) + self.sink_size
        if isinstance(position, int):
            return position if position < self.sink_size else ring
        return torch.where(position < self.sink_size, position, ring)


@dataclass(frozen=True)
class TokenStep:
    """One new token per row: write one slot, turn the sinks by `delta`, attend over the buffer in place.

    R is 1 when all rows agree and the batch size otherwise.
    """

    position: torch.Tensor
    """[R, 1], the stream position t of the new token."""
    slot: int | torch.Tensor
    """Slot the new token is written to; a tensor [batch] when rows differ."""
    used: int
    """Slots in use; the others are beyond every row's stream."""
    model_position: torch.Tensor
    """[R, 1], what the rotary module is given."""
    delta: torch.Tensor | None
    """[R, 1], how far sinks are moved towards the query; None while every sink is where it first was."""
    cache_position: torch.Tensor
    """[R, 1], the query's place within the cache."""
    active: torch.Tensor | None
    """[batch] bool, rows whose token is part of their stream; None: all."""
    visible: torch.Tensor | None
    """[batch, 1, 1, used] bool, slots in use in each row; None: all."""


@dataclass(frozen=True)
class QueryBlock:
    """Some queries of a call and the contiguous keys of the layout that any of them may see besides the sinks."""

    queries: slice
    keys: slice
    bias: torch.Tensor
    """[R, 1, 1, queries, keys] float32, 0 where visible."""
    sink_bias: torch.Tensor
    """[R, 1, 1, queries, S] float32, 0 where visible."""


@dataclass(frozen=True)
class BlockStep:
    """Several new tokens per row, padding on the left: attend over cached and new keys, then keep the last."""

    model_position: torch.Tensor
    """[R, n], what the rotary module is given."""
    delta: torch.Tensor | None
    """[R, n], how far sinks are from where each query must see them; None when nowhere."""
    cache_position: torch.Tensor
    """[R, n], each query's place within the cache."""
    past: torch.Tensor | None
    """[R, W], slots of the cached tokens from old to new; None for a call without a past."""
    sinks: torch.Tensor
    """[R, S], where in the layout each sink lies."""
    kept: torch.Tensor
    """[R, S+W+1], where in the layout the content of each slot after the call lies."""
    filled: torch.Tensor
    """[layout], columns of the layout that hold a token of any row."""
    blocks: tuple[QueryBlock, ...]


Step = TokenStep | BlockStep


def token_step(rows: Rows, active: list[bool], reach: Reach) -> TokenStep:
    """The step of one new token per row; a row that is not `active` keeps its stream as it is."""
    everyone = all(active)
    alike = everyone and len(set(zip(rows.seen, rows.base, strict=True))) == 1
    t, base = _columns(rows, alike)
    cached = t.clamp(max=reach.cached_size)
    delta = t - base - cached
    used = min(max(rows.seen) + 1, reach.visible_size)
    full = min(rows.seen) >= used - 1
    return TokenStep(
        position=t,
        slot=reach.slot_of(rows.seen[0]) if alike else reach.slot_of(t[:, 0]),
        used=used,
        model_position=t - base,
        delta=delta if any(rows.base) or max(rows.seen) > reach.cached_size else None,
        cache_position=cached,
        active=None if everyone else torch.tensor(active),
        visible=None if full else (torch.arange(used) <= t)[:, None, None],
    )


def slot_order(step: TokenStep, reach: Reach) -> torch.Tensor:
    """[R, used], slots from the oldest token to the newest: sinks, window, current."""
    t, slots = step.position, torch.arange(step.used, device=step.position.device)
    oldest = reach.slot_of((t - reach.window_size).clamp(min=reach.sink_size))
    ring = reach.sink_size + (oldest + slots - 2 * reach.sink_size) % (reach.window_size + 1)
    return torch.where((slots < reach.sink_size) | (t <= reach.cached_size), slots, ring)


def block_step(rows: Rows, counts: list[int], columns: int, reach: Reach, block_size: int) -> BlockStep:
    """The step of a call of `columns` columns of which the last `counts[row]` are row's new tokens."""
    alike = len(set(zip(rows.seen, rows.base, counts, strict=True))) == 1
    t, base = _columns(rows, alike)
    count = torch.tensor(counts[:1] if alike else counts)[:, None]
    has_past = any(rows.seen)
    query = t + torch.arange(columns) - (columns - count)
    model_position = (query - base).clamp(min=0)
    if reach.dense:
        cache_position = (query - t + t.clamp(max=reach.cached_size)).clamp(min=0)
    else:
        cache_position = query.clamp(min=0, max=reach.cached_size)
    delta = model_position - cache_position
    where = _Layout(t, count, columns, has_past, reach)
    return BlockStep(
        model_position=model_position,
        delta=delta if bool(delta.any()) else None,
        cache_position=cache_position,
        past=reach.slot_of(_window(t, reach).clamp(min=0)) if has_past else None,
        sinks=where.sinks(),
        kept=where.kept(),
        filled=where.filled(),
        blocks=tuple(where.block(query, start, block_size) for start in range(0, columns, block_size)),
    )


class _Layout:
    """Which token lies where in the key layout of a block; every answer is [R, …] or [layout]."""

    def __init__(self, t: torch.Tensor, count: torch.Tensor, columns: int, has_past: bool, reach: Reach) -> None:
        self.t, self.count, self.columns, self.reach = t, count, columns, reach
        self.has_past = has_past
        self.padding = columns - count
        self.past_size = reach.cached_size if has_past else 0
        new = t + torch.arange(columns) - self.padding
        old = _window(t, reach)
        tokens = torch.cat([torch.arange(reach.sink_size).expand_as(t.expand(-1, reach.sink_size)), old, new], 1)
        tokens = tokens if has_past else new
        column = torch.arange(tokens.shape[1])
        sink_part = (column < reach.sink_size) & has_past
        is_new = column >= self.past_size
        held = torch.where(is_new, tokens >= t, torch.where(sink_part, tokens < t, tokens >= reach.sink_size))
        self.tokens, self.held = tokens, held
        self.in_band = held & ~sink_part & (tokens >= reach.sink_size)

    def _column_of(self, token: torch.Tensor) -> torch.Tensor:
        """Where in the layout `token` lies, sinks and newer tokens only; anything else is mapped to 0."""
        reach = self.reach
        new = self.past_size + self.padding + token - self.t
        old = torch.where(token < reach.sink_size, token, reach.cached_size + token - self.t)
        oldest = torch.where(token < reach.sink_size, 0, self.t - reach.window_size)
        known = (token >= 0) & (token >= oldest) & (token < self.t + self.count)
        column = torch.where(token >= self.t, new, old if self.has_past else torch.zeros_like(token))
        return torch.where(known, column, 0)

    def sinks(self) -> torch.Tensor:
        return self._column_of(torch.arange(self.reach.sink_size).expand(self.t.shape[0], -1))

    def kept(self) -> torch.Tensor:
        """The newest token of every slot: sinks are themselves, ring slots count down from the last token fed."""
        reach, slots = self.reach, torch.arange(self.reach.visible_size)
        last = self.t + self.count - 1
        age = (reach.slot_of(last) - slots) % (reach.window_size + 1)
        newest = torch.where(last - age < reach.sink_size, -1, last - age)
        return self._column_of(torch.where(slots < reach.sink_size, slots, newest))

    def filled(self) -> torch.Tensor:
        return self.held.any(0).nonzero()[:, 0] if self.has_past else torch.arange(self.columns)

    def block(self, query: torch.Tensor, start: int, block_size: int) -> QueryBlock:
        stop = min(start + block_size, self.columns)
        keys = slice(self._first_key(start), self.past_size + stop)
        asking = query[:, start:stop, None]
        token, in_band = self.tokens[:, None, keys], self.in_band[:, None, keys]
        visible = in_band & (token <= asking)
        if not self.reach.dense:
            visible &= token >= asking - self.reach.window_size
        sinks = torch.arange(self.reach.sink_size) <= asking
        return QueryBlock(slice(start, stop), keys, _bias(visible), _bias(sinks))

    def _first_key(self, start: int) -> int:
        """First column any query from column `start` on may see; a row's padding lies between old and new keys."""
        reach = self.reach
        if reach.dense:
            return reach.sink_size if self.has_past else 0
        beyond = start - int(self.padding.max())
        if self.has_past and beyond < reach.window_size:
            return reach.sink_size + max(0, beyond)
        return self.past_size + max(0, start - reach.window_size)


def _window(t: torch.Tensor, reach: Reach) -> torch.Tensor:
    """[R, W], stream positions of the W tokens before `t`, from old to new; negative before the first."""
    return t - reach.window_size + torch.arange(reach.window_size)


def _columns(rows: Rows, alike: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`seen` and `base` as [R, 1] tensors."""
    count = 1 if alike else len(rows)
    return torch.tensor(rows.seen[:count])[:, None], torch.tensor(rows.base[:count])[:, None]


def _bias(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill_(~visible, MASKED)[:, None, None]


def to_device(step: Step, device: torch.device) -> Step:
    """The same step with its tensors on `device`."""

    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, QueryBlock):
            return replace(value, bias=moved(value.bias), sink_bias=moved(value.sink_bias))
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    return replace(step, **{field.name: moved(getattr(step, field.name)) for field in fields(step)})
