"""One model call, as its layers see it: computed once, immutable, handed down with the call's arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .positions import Rotary, Tables
from .step import Reach, Step, TokenStep, to_device

CALL_ARGUMENT = "attention_sink_call"
"""The keyword under which a `Call` travels from the base model through its layers to their attention."""


@dataclass(frozen=True)
class LayerCall:
    """What one layer needs for one call, on its own device and in its own dtype."""

    reach: Reach
    step: Step
    position_embeddings: Tables | None
    """Cosines and sines of the new tokens' model positions; None for a layer without rotation."""
    turn: Tables | None
    """float32 tables that bring sinks and queries together: a token step turns its sinks, a block its queries."""
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor] | None
    implementation: str
    """The attention implementation the user chose for the model."""


@dataclass(frozen=True)
class Call:
    """One call of the base model.

    Parameters
    ----------
    steps : dict of Reach to Step
        One step for each kind of layer.
    reaches : tuple of Reach
        What each layer's queries see, by layer index.
    rotaries : tuple of Rotary or None
        What turns each layer's queries and keys, by layer index.
    implementation : str
        The attention implementation the user chose.
    """

    steps: dict[Reach, Step]
    reaches: tuple[Reach, ...]
    rotaries: tuple[Rotary | None, ...]
    implementation: str
    _made: dict = field(default_factory=dict, repr=False)

    def at(self, layer_idx: int, like: torch.Tensor) -> LayerCall:
        """The call as layer `layer_idx` needs it, whose hidden states are like `like`; made once per kind of layer."""
        reach, rotary = self.reaches[layer_idx], self.rotaries[layer_idx]
        key = (id(reach), id(rotary), like.device, like.dtype)
        if key not in self._made:
            self._made[key] = self._make(reach, rotary, like)
        return self._made[key]

    def _make(self, reach: Reach, rotary: Rotary | None, like: torch.Tensor) -> LayerCall:
        step = self.steps[reach] if like.device.type == "cpu" else to_device(self.steps[reach], like.device)
        if rotary is None:
            return LayerCall(reach, step, None, None, None, self.implementation)
        turn = None
        if step.delta is not None:
            turn = rotary.tables(step.delta if isinstance(step, TokenStep) else -step.delta)
        embeddings = rotary.embeddings(step.model_position, like.dtype)
        return LayerCall(reach, step, embeddings, turn, rotary.pairing.rotate, self.implementation)
