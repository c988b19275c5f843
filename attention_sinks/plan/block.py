"""The plan of a call of several tokens per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .counters import Counters
from .reach import Reach

MASKED = torch.finfo(torch.float32).min


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
class BlockPlan:
    """Several new tokens per row, padding on the left: attend over cached and new keys, then keep the last."""

    position: torch.Tensor
    """[R, 1], the stream position t of each row's first new token."""
    count: torch.Tensor
    """[R, 1], how many new tokens each row has."""
    idle: torch.Tensor | None
    """[R] bool, rows without a new token, which keep their stream as it is; None: no row."""
    model_position: torch.Tensor
    """[R, n], what the rotary module is given."""
    delta: torch.Tensor | None
    """[R, n], how far sinks are from where each query must see them; None when nowhere."""
    query_position: torch.Tensor
    """[R, n], stream positions of the queries."""
    cache_position: torch.Tensor
    """[R, n], each query's place within the cache."""
    tokens: torch.Tensor
    """[R, layout], stream positions of the keys of the layout."""
    past: torch.Tensor | None
    """[R, W], slots of the cached tokens from old to new; None for a call without a past."""
    sinks: torch.Tensor
    """[R, S], where in the layout each sink lies."""
    kept: torch.Tensor
    """[R, S+W+1], where in the layout the content of each slot after the call lies."""
    filled: torch.Tensor
    """[layout], columns of the layout that hold a token of any row."""
    blocks: tuple[QueryBlock, ...]


def plan_block(counters: Counters, counts: Sequence[int], columns: int, reach: Reach, block_size: int) -> BlockPlan:
    """The plan of a call of `columns` columns, of which the last `counts[row]` are the row's new tokens.

    `block_size` queries are scored at once.
    """
    alike = len(set(zip(counters.seen, counters.origin, counts, strict=True))) == 1
    rows = 1 if alike else len(counts)
    numbers = counters.seen[:rows], counters.origin[:rows], tuple(counts[:rows])
    t, origin, count = torch.tensor(numbers, dtype=torch.long, device="cpu")[..., None]
    has_past = any(counters.seen)
    query = t + _range(columns) - (columns - count)
    model_position = (query - origin).clamp(min=0)
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
    """Which token lies where in the key layout of a block. Answers have the shape [R, …] or [layout]."""

    def __init__(self, t: torch.Tensor, count: torch.Tensor, columns: int, has_past: bool, reach: Reach) -> None:
        self.t, self.count, self.columns, self.reach = t, count, columns, reach
        self.has_past = has_past
        self.padding = columns - count
        self.past_size = reach.cached_size if has_past else 0
        new = t + _range(columns) - self.padding
        old = _window(t, reach)
        tokens = torch.cat([_range(reach.sink_size).expand_as(t.expand(-1, reach.sink_size)), old, new], 1)
        tokens = tokens if has_past else new
        column = _range(tokens.shape[1])
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
        return self._column_of(_range(self.reach.sink_size).expand(self.t.shape[0], -1))

    def kept(self) -> torch.Tensor:
        """The newest token of every slot: sinks are themselves, ring slots count down from the last token fed."""
        reach, slots = self.reach, _range(self.reach.visible_size)
        last = self.t + self.count - 1
        age = (reach.slot_of(last) - slots) % (reach.window_size + 1)
        newest = torch.where(last - age < reach.sink_size, -1, last - age)
        return self._column_of(torch.where(slots < reach.sink_size, slots, newest))

    def filled(self) -> torch.Tensor:
        return self.held.any(0).nonzero()[:, 0] if self.has_past else _range(self.columns)

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
        sinks = _range(self.reach.sink_size) <= asking
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
    return t - reach.window_size + _range(reach.window_size)


def _bias(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=torch.float32, device="cpu").masked_fill_(~visible, MASKED)[:, None, None]


def _range(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.long, device="cpu")
