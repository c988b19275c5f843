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

    def of_layers(self, base_model: BtlmModel, length: int) -> tuple[Alibi, ...]:
        return (Alibi(base_model.relative_pe.scaled_slopes(length)),) * base_model.config.n_layer

    def modules(self, base_model: BtlmModel) -> list[nn.Module]:
        return [base_model.relative_pe]


ARCHITECTURE = Architecture("BtlmAttention", StoredSlopes())
