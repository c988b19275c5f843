"""Lara Mini: attention that turns its queries and keys whenever it is handed cosines and sines.

Its full layers know no positions and are handed none. Linear layers stand beside them and beside sliding ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from ..architecture.spec import Architecture
from ..positions.schemes import Position, Rope, sliding_layers


@dataclass(frozen=True)
class RopeWhereRotated(Rope):
    """Rotary positions of which layers that do not turn hear nothing."""

    def of_layers(self, base: PreTrainedModel, length: int) -> tuple[Position, ...]:
        positions = super().of_layers(base, length)
        return tuple(position if position.rotates else None for position in positions)


ARCHITECTURE = Architecture("LaraMiniAttention", RopeWhereRotated(rotates=sliding_layers))
