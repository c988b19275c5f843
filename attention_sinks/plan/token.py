"""The plan of a step: a call of one token per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .counters import Counters
from .reach import Reach


@dataclass(frozen=True)
class TokenPlan:
    """What a step does: it writes one slot, rotates the sinks by `delta` and attends to the buffer in place."""

    position: torch.Tensor
    """[R, 1], the stream position t of the new token."""
    slot: torch.Tensor
    """[R], the slot that the new token is written to."""
    used: int
    """How many slots are in use. No row has a token in the others."""
    model_position: torch.Tensor
    """[R, 1], what the rotary module is given."""
    delta: torch.Tensor | None
    """[R, 1], how far the sinks are rotated towards the query; None while every sink is where it first was."""
    cache_position: torch.Tensor
    """[R, 1], the query's cache position."""
    active: torch.Tensor | None
    """[batch] bool, True for a row whose token is part of its stream; None where all are."""
    visible: torch.Tensor | None
    """[batch, 1, 1, used] bool, True for a slot whose token the query of the row sees; None where it sees all."""
    may_be_sink: bool = False
    """Whether the new token may be one of the first S. Only a step inside a graph does not know this before it runs."""


def plan_token(counters: Counters, active: torch.Tensor | None, reach: Reach) -> TokenPlan:
    """Return the plan of one new token per row.

    Parameters
    ----------
    counters : Counters
        Where the streams stand before the step.
    active : torch.Tensor or None
        [batch] bool on the CPU. The stream of a row that is not active stays as it is. None: all rows are active.
    reach : Reach
        What the queries see.
    """
    oldest, newest = min(counters.seen), max(counters.seen)
    alike = active is None and oldest == newest and min(counters.origin) == max(counters.origin)
    rows = 1 if alike else len(counters.seen)
    numbers = []
    for t, origin in zip(counters.seen[:rows], counters.origin[:rows], strict=True):
        # `Reach.slot_of` in Python numbers: a tensor operation for each of these would cost more than all of them do.
        slot = t if t < reach.sink_size else reach.sink_size + (t - reach.sink_size) % (reach.window_size + 1)
        cached = min(t, reach.cached_size)
        numbers.append((t, slot, t - origin, t - origin - cached, cached))
    columns = torch.tensor(numbers, dtype=torch.long, device="cpu")
    position, slots, model_position, delta, cache_position = columns[..., None].unbind(1)
    used = min(newest + 1, reach.visible_size)
    full = oldest >= used - 1 and not reach.chunked
    rotates_sinks = reach.sink_size > 0 and (max(counters.origin) > 0 or newest > reach.cached_size)
    return TokenPlan(
        position=position,
        slot=slots[:, 0],
        used=used,
        model_position=model_position,
        delta=delta if rotates_sinks else None,
        cache_position=cache_position,
        active=active,
        visible=None if full else visible_slots(position, used, reach)[:, None, None],
    )


def visible_slots(t: torch.Tensor, used: int, reach: Reach) -> torch.Tensor:
    """Return which slots [R, used] hold a token that the query at stream position `t` [R, 1] sees."""
    slots = torch.arange(used, dtype=torch.long, device=t.device)
    if not reach.chunked:
        return slots <= t
    return (reach.slot_of(t) - slots) % reach.visible_size <= t % reach.visible_size


def slot_order(plan: TokenPlan, reach: Reach) -> torch.Tensor:
    """Return the slots [R, used] from the oldest token to the newest: sinks, window, the current token."""
    t, slots = plan.position, torch.arange(plan.used, dtype=torch.long, device=plan.position.device)
    oldest = reach.slot_of((t - reach.window_size).clamp(min=reach.sink_size))
    ring = reach.sink_size + (oldest + slots - 2 * reach.sink_size) % (reach.window_size + 1)
    return torch.where((slots < reach.sink_size) | (t <= reach.cached_size), slots, ring)


def slot_places(plan: TokenPlan, reach: Reach) -> torch.Tensor:
    """Return the cache position [R, used] of the token in each slot. It means nothing for a slot that is not in use."""
    slots = torch.arange(plan.used, dtype=torch.long, device=plan.position.device)
    age = (reach.slot_of(plan.position) - slots) % (reach.window_size + 1)
    return torch.where(slots < reach.sink_size, slots, plan.cache_position - age)
