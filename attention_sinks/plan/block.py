"""The plan of a block: several new tokens per row, in one call or in one chunk of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .counters import Counters
from .reach import Reach

MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class QueryBlock:
    """Some queries of a block and the contiguous part of the key layout that any of them may see besides the sinks."""

    queries: slice
    keys: slice
    bias: torch.Tensor
    """[R, 1, 1, queries, keys] float32, 0 where visible."""
    sink_bias: torch.Tensor
    """[R, 1, 1, queries, S] float32, 0 where visible."""


@dataclass(frozen=True)
class BlockPlan:
    """What a block does: its queries attend to cached and new keys, then the cache keeps the newest keys.

    Padding stands on the left of the new tokens.
    """

    position: torch.Tensor
    """[R, 1], the stream position t of each row's first new token."""
    count: torch.Tensor
    """[R, 1], how many new tokens each row has."""
    idle: torch.Tensor | None
    """[R] bool, True for a row without a new token, whose stream stays as it is; None where every row has one."""
    model_position: torch.Tensor
    """[R, n], what the rotary module is given."""
    delta: torch.Tensor | None
    """[R, n], how far sinks are from where each query must see them; None where every delta is zero."""
    query_position: torch.Tensor
    """[R, n], stream positions of the queries."""
    cache_position: torch.Tensor
    """[R, n], cache positions of the queries."""
    tokens: torch.Tensor
    """[R, keys], stream positions of the tokens in the key layout."""
    past: torch.Tensor | None
    """[R, W], slots of the cached tokens from old to new; None for a call without a past."""
    sinks: torch.Tensor
    """[R, S], where in the key layout each sink lies."""
    kept: torch.Tensor
    """[R, S+W+1], where in the key layout the content of each slot after the call lies."""
    filled: torch.Tensor
    """The places in the key layout that hold a token of at least one row, in their order."""
    query_blocks: tuple[QueryBlock, ...]
    """The queries of the block, cut into parts that are scored one after the other."""


def plan_block(counters: Counters, counts: Sequence[int], columns: int, reach: Reach, block_size: int) -> BlockPlan:
    """Return the plan of a block of `columns` columns.

    Parameters
    ----------
    counters : Counters
        Where the streams stand before the block.
    counts : sequence of int
        How many new tokens each row has. They stand in its last columns.
    columns : int
        How many columns the block has, padding included.
    reach : Reach
        What the queries see.
    block_size : int
        How many queries are scored at once.
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
    layout = _KeyLayout(t, count, columns, has_past, reach)
    return BlockPlan(
        position=t,
        count=count,
        idle=None if min(counts) else count[:, 0] == 0,
        model_position=model_position,
        delta=delta if reach.sink_size and bool(delta.any()) else None,
        query_position=query,
        cache_position=cache_position,
        tokens=layout.tokens,
        past=reach.slot_of(_window(t, reach).clamp(min=0)) if has_past else None,
        sinks=layout.sinks(),
        kept=layout.kept(),
        filled=layout.filled(),
        query_blocks=tuple(layout.query_block(query, start, block_size) for start in range(0, columns, block_size)),
    )


class _KeyLayout:
    """The key layout of a block: which token lies at which place."""

    def __init__(self, t: torch.Tensor, count: torch.Tensor, columns: int, has_past: bool, reach: Reach) -> None:
        self.t, self.count, self.columns, self.reach = t, count, columns, reach
        self.has_past = has_past
        self.padding = columns - count
        self.past_size = reach.cached_size if has_past else 0
        new = t + _range(columns) - self.padding
        old = _window(t, reach)
        tokens = torch.cat([_range(reach.sink_size).expand_as(t.expand(-1, reach.sink_size)), old, new], 1)
        tokens = tokens if has_past else new
        place = _range(tokens.shape[1])
        sink_part = (place < reach.sink_size) & has_past
        is_new = place >= self.past_size
        held = torch.where(is_new, tokens >= t, torch.where(sink_part, tokens < t, tokens >= reach.sink_size))
        self.tokens, self.held = tokens, held
        self.in_band = held & ~sink_part & (tokens >= reach.sink_size)

    def _place_of(self, token: torch.Tensor) -> torch.Tensor:
        """Return where in the key layout the tokens at stream positions `token` lie; 0 for one that is not there."""
        reach = self.reach
        new = self.past_size + self.padding + token - self.t
        old = torch.where(token < reach.sink_size, token, reach.cached_size + token - self.t)
        oldest = torch.where(token < reach.sink_size, 0, self.t - reach.window_size)
        known = (token >= 0) & (token >= oldest) & (token < self.t + self.count)
        place = torch.where(token >= self.t, new, old if self.has_past else torch.zeros_like(token))
        return torch.where(known, place, 0)

    def sinks(self) -> torch.Tensor:
        """Return where each sink lies, [R, S]."""
        return self._place_of(_range(self.reach.sink_size).expand(self.t.shape[0], -1))

    def kept(self) -> torch.Tensor:
        """Return where the token lies that each slot holds after the block, [R, S+W+1].

        A slot of the ring holds the newest of its tokens, so they count down from the last token fed.
        """
        reach, slots = self.reach, _range(self.reach.visible_size)
        last = self.t + self.count - 1
        age = (reach.slot_of(last) - slots) % (reach.window_size + 1)
        newest = torch.where(last - age < reach.sink_size, -1, last - age)
        return self._place_of(torch.where(slots < reach.sink_size, slots, newest))

    def filled(self) -> torch.Tensor:
        """Return the places that hold a token of at least one row."""
        return self.held.any(0).nonzero()[:, 0] if self.has_past else _range(self.columns)

    def query_block(self, query: torch.Tensor, start: int, block_size: int) -> QueryBlock:
        """Return the queries of at most `block_size` columns from column `start` on, and what they see.

        `query` [R, columns] holds the stream positions of all queries.
        """
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
        """Return the first place, sinks left out, that any query from column `start` on may see.

        The padding of a row lies between its cached and its new keys.
        """
        reach = self.reach
        if reach.dense:
            return reach.sink_size if self.has_past else 0
        beyond = start - int(self.padding.max())
        if self.has_past and beyond < reach.window_size:
            return reach.sink_size + max(0, beyond)
        return self.past_size + max(0, start - reach.window_size)


def _window(t: torch.Tensor, reach: Reach) -> torch.Tensor:
    """Return the stream positions [R, W] of the W tokens before `t`, from old to new; negative before the first."""
    return t - reach.window_size + _range(reach.window_size)


def _bias(visible: torch.Tensor) -> torch.Tensor:
    """Return what is added to scores [R, 1, 1, queries, keys], of which `visible` [R, queries, keys] are kept."""
    return torch.zeros(visible.shape, dtype=torch.float32, device="cpu").masked_fill_(~visible, MASKED)[:, None, None]


def _range(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.long, device="cpu")
