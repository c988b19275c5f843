"""Position schemes: how the layers of an architecture know where their keys are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .alibi import Alibi
from .frequencies import Frequencies, PlainFrequencies, module_frequencies
from .rotary import HALVES, NEIGHBOURS, Pairing, Rotary

Position = Rotary | Alibi | None
"""How a layer knows where its keys are; None: it does not."""


def every_layer(config: PreTrainedConfig, layer_idx: int) -> bool:
    return True


def sliding_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    return config.layer_types[layer_idx] == "sliding_attention"


def sliding_layers_if_any(config: PreTrainedConfig, layer_idx: int) -> bool:
    return config.sliding_window is None or sliding_layers(config, layer_idx)


def by_no_rope_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    """`config.no_rope_layers` has 1, despite its name, where a layer rotates."""
    return bool(config.no_rope_layers[layer_idx])


@dataclass(frozen=True)
class Rope:
    """Rotary positions made by one module of the base model.

    Parameters
    ----------
    pairing : Pairing, default HALVES
        How it pairs the dimensions it rotates.
    rotates : callable, default all layers
        (config, layer index) -> whether the layer rotates its queries and keys.
    module : str, default "rotary_emb"
        Its path in the base model; one inside an attention module stands for those of all layers.
    """

    pairing: Pairing = HALVES
    rotates: Callable[[PreTrainedConfig, int], bool] = every_layer
    module: str = "rotary_emb"

    def of_layers(self, base: PreTrainedModel, length: int) -> tuple[Position, ...]:
        """The positions of each layer, for a cache whose queries see at most `length` tokens."""
        module, config = base.get_submodule(self.module), base.config
        by_name = isinstance(module.rope_type, dict)
        names = (config.layer_types if by_name else [None] * config.num_hidden_layers)[: config.num_hidden_layers]
        rotaries = {
            (name, rotates): Rotary(module_frequencies(module, length, name), self.pairing, rotates)
            for name in set(names) & set(module.rope_type if by_name else [None])
            for rotates in (True, False)
        }
        return tuple(rotaries.get((name, self.rotates(config, index))) for index, name in enumerate(names))

    def modules(self, base: PreTrainedModel) -> list[nn.Module]:
        """The modules that need not run, because attention takes its cosines and sines from the call."""
        return [] if "." in self.module else [getattr(base, self.module)]


class SameInAllLayers:
    """Positions that every layer knows alike, and that no module of the base model makes."""

    def position(self, base: PreTrainedModel) -> Position:
        raise NotImplementedError

    def of_layers(self, base: PreTrainedModel, length: int) -> tuple[Position, ...]:
        return (self.position(base),) * base.config.num_hidden_layers

    def modules(self, base: PreTrainedModel) -> list[nn.Module]:
        return []


@dataclass(frozen=True)
class NoPositions(SameInAllLayers):
    """Attention that does not know where its keys are."""

    def position(self, base: PreTrainedModel) -> Position:
        return None


@dataclass(frozen=True)
class RopeTable(SameInAllLayers):
    """Rotary positions that the model looks up in a finite table: here they are computed.

    Parameters
    ----------
    width : callable
        config -> number of dimensions that are rotated.
    pairing : Pairing, default NEIGHBOURS
        How attention pairs these dimensions.
    """

    width: Callable[[PreTrainedConfig], int]
    pairing: Pairing = NEIGHBOURS

    def position(self, base: PreTrainedModel) -> Position:
        return Rotary(Frequencies(PlainFrequencies(self.width(base.config))), self.pairing)


@dataclass(frozen=True)
class LinearBias(SameInAllLayers):
    """ALiBi.

    Parameters
    ----------
    alibi : callable
        base model -> Alibi.
    """

    alibi: Callable[[PreTrainedModel], Alibi]

    def position(self, base: PreTrainedModel) -> Position:
        return self.alibi(base)


Scheme = Rope | RopeTable | LinearBias | NoPositions
