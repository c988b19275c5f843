"""The step of a call of several tokens per row."""

from __future__ import annotations

import torch

from .counters import Counters
from .reach import BlockPlan, QueryBlock, Reach, counters

MASKED = torch.finfo(torch.float32).min


def plan_block(rows: Counters, counts: list[int], columns: int, reach: Reach, block_size: int) -> BlockPlan:
    """The step of a call of `columns` columns of which the last `counts[row]` are row's new tokens."""
    alike = len(set(zip(rows.seen, rows.base, counts, strict=True))) == 1
    t, base = counters(rows, alike)
    count = torch.tensor(counts[:1] if alike else counts)[:, None]
    has_past = any(rows.seen)
    query = t + torch.arange(columns) - (columns - count)
    model_position = (query - base).clamp(min=0)
    if reach.dense:
        cache_position = (query - t + t.clamp(max=reach.cached_size)).clamp(min=0)
    else:
        cache_position = query.clamp(min=0, max=reach.cached_size)
    delta = model_position - cache_position
    where = _KeyLayout(t, count, columns, has_past, reach)
    return BlockPlan(
        position=t,
        count=count,
        idle=None if min(counts) else count[:, 0] == 0,
        model_position=model_position,
        delta=delta if reach.sink_size and bool(delta.any()) else None,
        query_position=query,
        cache_position=cache_position,
        tokens=where.tokens,
        past=reach.slot_of(_window(t, reach).clamp(min=0)) if has_past else None,
        sinks=where.sinks(),
        kept=where.kept(),
        filled=where.filled(),
        blocks=tuple(where.block(query, start, block_size) for start in range(0, columns, block_size)),
    )


class _KeyLayout:
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
        if self.reach.chunked:
            visible &= token >= asking - asking % self.reach.visible_size
        elif not self.reach.dense:
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


def _bias(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill_(~visible, MASKED)[:, None, None]
