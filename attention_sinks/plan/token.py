"""The plan of a step: a call of one token per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .counters import Counters
from .reach import Reach


@dataclass(frozen=True)
class TokenPlan:
    """One new token per row: write one slot, rotate the sinks by `delta`, attend over the buffer in place."""

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


def plan_token(counters: Counters, active: torch.Tensor | None, reach: Reach) -> TokenPlan:
    """The plan of one new token per row.

    Parameters
    ----------
    active : torch.Tensor or None
        [batch] bool on the CPU. A row that is not active keeps its stream as it is; None: all rows are active.
    """
    first, oldest, newest = counters.seen[0], min(counters.seen), max(counters.seen)
    alike = active is None and oldest == newest and min(counters.origin) == max(counters.origin)
    rows = 1 if alike else len(counters.seen)
    counts = counters.seen[:rows], counters.origin[:rows]
    t, origin = torch.tensor(counts, dtype=torch.long, device="cpu")[..., None]
    cached, model_position = t.clamp(max=reach.cached_size), t - origin
    if not alike:
        slot: int | torch.Tensor = reach.slot_of(t[:, 0])
    elif first < reach.visible_size:
        slot = first
    else:
        slot = reach.sink_size + (first - reach.sink_size) % (reach.window_size + 1)
    used = min(newest + 1, reach.visible_size)
    full = oldest >= used - 1 and not reach.chunked
    moved = reach.sink_size > 0 and (max(counters.origin) > 0 or newest > reach.cached_size)
    return TokenPlan(
        position=t,
        slot=slot,
        used=used,
        model_position=model_position,
        delta=model_position - cached if moved else None,
        cache_position=cached,
        active=active,
        visible=None if full else visible_slots(t, used, reach)[:, None, None],
    )


def visible_slots(t: torch.Tensor, used: int, reach: Reach) -> torch.Tensor:
    """[R, used], which slots hold a token that the query at stream position `t` [R, 1] sees."""
    slots = torch.arange(used, dtype=torch.long, device=t.device)
    if not reach.chunked:
        return slots <= t
    return (reach.slot_of(t) - slots) % reach.visible_size <= t % reach.visible_size


def slot_order(plan: TokenPlan, reach: Reach) -> torch.Tensor:
    """[R, used], slots from the oldest token to the newest: sinks, window, current."""
    t, slots = plan.position, torch.arange(plan.used, dtype=torch.long, device=plan.position.device)
    oldest = reach.slot_of((t - reach.window_size).clamp(min=reach.sink_size))
    ring = reach.sink_size + (oldest + slots - 2 * reach.sink_size) % (reach.window_size + 1)
    return torch.where((slots < reach.sink_size) | (t <= reach.cached_size), slots, ring)


def slot_places(plan: TokenPlan, reach: Reach) -> torch.Tensor:
    """[R, used], the place within the cache of what each slot holds; negative or wrong where a slot is not in use."""
    slots = torch.arange(plan.used, dtype=torch.long, device=plan.position.device)
    age = (reach.slot_of(plan.position) - slots) % (reach.window_size + 1)
    return torch.where(slots < reach.sink_size, slots, plan.cache_position - age)
