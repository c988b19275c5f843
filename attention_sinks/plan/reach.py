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

from .counters import Counters


@dataclass(frozen=True)
class Reach:
    """What the queries of a layer see: `sink_size` sinks (S) and `window_size` recent tokens (W) besides themselves.

    `dense` lets the tokens of one call see every cached token and each other whatever their distance. With `chunked`
    they see nothing before the last multiple of W + 1 in their stream.
    """

    sink_size: int
    window_size: int
    dense: bool = False
    chunked: bool = False

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
class TokenPlan:
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
    may_be_sink: bool = False
    """Whether the new token may be one of the first S, as only steps inside a graph cannot tell before."""


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


Plan = TokenPlan | BlockPlan


def counters(rows: Counters, alike: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`seen` and `base` as [R, 1] tensors; R is 1 when all rows are alike."""
    count = 1 if alike else len(rows)
    return torch.tensor(rows.seen[:count])[:, None], torch.tensor(rows.base[:count])[:, None]


def to_device(step: Plan, device: torch.device) -> Plan:
    """The same step with its tensors on `device`."""

    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, QueryBlock):
            return replace(value, bias=moved(value.bias), sink_bias=moved(value.sink_bias))
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    return replace(step, **{field.name: moved(getattr(step, field.name)) for field in fields(step)})
