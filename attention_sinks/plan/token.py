"""The step of a call of one token per row."""

from __future__ import annotations

import torch

from .counters import Counters
from .reach import Reach, TokenPlan, counters


def plan_token(rows: Counters, active: list[bool], reach: Reach) -> TokenPlan:
    """The step of one new token per row; a row that is not `active` keeps its stream as it is."""
    everyone = all(active)
    alike = everyone and len(set(zip(rows.seen, rows.base, strict=True))) == 1
    t, base = counters(rows, alike)
    cached = t.clamp(max=reach.cached_size)
    delta = t - base - cached
    used = min(max(rows.seen) + 1, reach.visible_size)
    full = min(rows.seen) >= used - 1 and not reach.chunked
    return TokenPlan(
        position=t,
        slot=reach.slot_of(rows.seen[0]) if alike else reach.slot_of(t[:, 0]),
        used=used,
        model_position=t - base,
        delta=delta if reach.sink_size and (any(rows.base) or max(rows.seen) > reach.cached_size) else None,
        cache_position=cached,
        active=None if everyone else torch.tensor(active),
        visible=None if full else visible_slots(t, used, reach)[:, None, None],
    )


def visible_slots(t: torch.Tensor, used: int, reach: Reach) -> torch.Tensor:
    """[R, used], which slots hold a token that the query at stream position `t` [R, 1] sees."""
    slots = torch.arange(used, device=t.device)
    if not reach.chunked:
        return slots <= t
    return (reach.slot_of(t) - slots) % reach.visible_size <= t % reach.visible_size


def slot_order(step: TokenPlan, reach: Reach) -> torch.Tensor:
    """[R, used], slots from the oldest token to the newest: sinks, window, current."""
    t, slots = step.position, torch.arange(step.used, device=step.position.device)
    oldest = reach.slot_of((t - reach.window_size).clamp(min=reach.sink_size))
    ring = reach.sink_size + (oldest + slots - 2 * reach.sink_size) % (reach.window_size + 1)
    return torch.where((slots < reach.sink_size) | (t <= reach.cached_size), slots, ring)


def slot_places(step: TokenPlan, reach: Reach) -> torch.Tensor:
    """[R, used], the place within the cache of what each slot holds; negative or wrong where a slot is not in use."""
    slots = torch.arange(step.used, device=step.position.device)
    age = (reach.slot_of(step.position) - slots) % (reach.window_size + 1)
    return torch.where(slots < reach.sink_size, slots, step.cache_position - age)
