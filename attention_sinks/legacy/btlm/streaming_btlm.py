"""The facts about BTLM and JAIS that attention sinks need."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...architecture.spec import Architecture
from ...positions.alibi import Alibi
from .modeling_btlm import BtlmModel


@dataclass(frozen=True)
class StoredSlopes:
    """ALiBi with the slopes of the checkpoint, scaled for the most keys that a query ever sees."""

    def of_layers(self, base: BtlmModel, length: int) -> tuple[Alibi, ...]:
        return (Alibi(base.relative_pe.scaled_slopes(length)),) * base.config.n_layer

    def modules(self, base: BtlmModel) -> list[nn.Module]:
        return [base.relative_pe]


ARCHITECTURE = Architecture("BtlmAttention", StoredSlopes())
