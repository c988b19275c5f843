"""Lara Mini rotates queries and keys in every layer that is handed cosines and sines.

Its full layers know no positions and are handed none. It also has sliding layers and linear ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from ..architecture.spec import Architecture
from ..positions.rotary import Rotary
from ..positions.schemes import Position, Rope, sliding_layers


@dataclass(frozen=True)
class RopeWhereRotated(Rope):
    """Rotary positions that only the layers which rotate are handed."""

    def of_layers(self, base_model: PreTrainedModel, length: int) -> tuple[Position, ...]:
        positions = super().of_layers(base_model, length)
        return tuple(position if isinstance(position, Rotary) and position.rotates else None for position in positions)


ARCHITECTURE = Architecture("LaraMiniAttention", RopeWhereRotated(rotates=sliding_layers))
