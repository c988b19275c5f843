"""One model call, as its layers see it: computed once, immutable, handed down with the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..positions.alibi import Alibi
from ..positions.rotary import Rotary, Tables
from .layers import LayerTable
from .reach import Plan, Reach, TokenPlan, to_device
from .token import slot_places

LAYER_PLAN = "attention_sink_call"
"""The keyword under which an attention module hands its `LayerPlan` to the attention function."""


@dataclass(frozen=True)
class LayerPlan:
    """What one layer needs for one call, on its own device and in its own dtype."""

    reach: Reach
    step: Plan
    position_embeddings: Tables | None
    """Cosines and sines of the new tokens' model positions; None for a layer without rotation."""
    turn: Tables | None
    """float32 tables that bring sinks and queries together: a token step turns its sinks, a block its queries."""
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor] | None
    rotary: Rotary | None
    """What made the tables, for architectures that need more of them."""
    alibi: Alibi | None
    token_bias: torch.Tensor | None
    """[R, heads, 1, used] float32, the linear bias of a token step."""
    implementation: str
    """The attention implementation the user chose for the model."""


@dataclass(frozen=True)
class CallPlan:
    """One call of the base model.

    Parameters
    ----------
    steps : tuple of Plan
        One for each of `layout.distinct_reaches`.
    layout : LayerTable
        What each layer's queries see, and how it knows where its keys are.
    implementation : str
        The attention implementation the user chose.
    """

    steps: tuple[Plan, ...]
    layout: LayerTable
    implementation: str
    _made: dict = field(default_factory=dict, repr=False)

    def at(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        """The call as layer `layer_idx` needs it, whose hidden states are like `like`; made once per kind of layer."""
        key = (self.layout.groups[layer_idx], like.device, like.dtype)
        if key not in self._made:
            self._made[key] = self._make(layer_idx, like)
        return self._made[key]

    def _make(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        reach, position = self.layout.reaches[layer_idx], self.layout.positions[layer_idx]
        step = self.steps[self.layout.steps[layer_idx]]
        step = step if like.device.type == "cpu" else to_device(step, like.device)
        embeddings = turn = rotate = rotary = alibi = token_bias = None
        if isinstance(position, Rotary):
            rotary = position
            embeddings, rotate = position.embeddings(step.model_position, like.dtype), position.pairing.rotate
            if step.delta is not None and position.rotates:
                turn = position.tables(step.delta if isinstance(step, TokenPlan) else -step.delta)
        if isinstance(position, Alibi):
            alibi = position
            if isinstance(step, TokenPlan):
                token_bias = alibi.bias(step.cache_position, slot_places(step, reach)[:, None])
        return LayerPlan(reach, step, embeddings, turn, rotate, rotary, alibi, token_bias, self.implementation)
