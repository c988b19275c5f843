"""The plan of one call for layers that are alike, on their device and in their dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ..positions.alibi import Alibi
from ..positions.rotary import Rotary, Tables
from .block import BlockPlan, QueryBlock
from .reach import Reach
from .token import TokenPlan

Plan = TokenPlan | BlockPlan
"""What one call, or one chunk of it, does to the streams."""


def _unrotated(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    return states


@dataclass(frozen=True)
class Rounded:
    """The keys and values of a step as a cache keeps them that rounds."""

    keys: torch.Tensor
    """[batch, num_key_value_heads, slots, row], all of the buffer."""
    values: torch.Tensor
    """The same of the values."""
    sinks: torch.Tensor
    """[batch, num_key_value_heads, S or 0, head_dim], which the step must see in place of the first keys."""
    unpacked: tuple[torch.Tensor, torch.Tensor]
    """All of these as the cache's `update` returns them: [batch, num_key_value_heads, slots, head_dim]."""


@dataclass(frozen=True)
class LayerPlan:
    """What one layer needs for one call."""

    reach: Reach
    """What the queries of the layer see."""
    plan: Plan
    """What the call does to the streams, as far as `reach` goes."""
    implementation: str
    """The attention implementation that the user chose for the model."""
    position_embeddings: Any = None
    """Cosines and sines of the new tokens' model positions, as the model's attention takes them; None for a layer
    without rotation."""
    sink_rotation: Tables | None = None
    """Tables, in float32 or wider, that bring sinks and queries together: a step rotates its sinks, a block its
    queries. None where they need not be rotated."""
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor] = _unrotated
    """(states [batch, heads, n, head_dim], tables [R, n, d]) -> rotated states; a layer without rotation returns them
    as they are."""
    rotary: Rotary | None = None
    """What made the tables, for architectures that need more of them."""
    alibi: Alibi | None = None
    """The linear bias of the layer, from which a block makes its own."""
    token_bias: torch.Tensor | None = None
    """[R, heads, 1, used] float32, the linear bias of a step."""
    rounded: list[Rounded] = field(default_factory=list, compare=False)
    """In a graph, what the cache's `update` has last returned, for attention that need not have it unpacked."""


def to_device(plan: Plan, device: torch.device) -> Plan:
    """Return the same plan with its tensors on `device`."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, QueryBlock):
            return replace(value, bias=moved(value.bias), sink_bias=moved(value.sink_bias))
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    return replace(plan, **{field.name: moved(getattr(plan, field.name)) for field in fields(plan)})
