"""A position scheme says how the layers of an architecture know where their keys are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .alibi import Alibi
from .frequencies import Frequencies, PlainFrequencies, module_frequencies
from .rotary import HALVES, NEIGHBOURS, Pairing, Rotary

Position = Rotary | Alibi | None
"""How one layer knows where its keys are; None for a layer that does not know it."""


def rotates(position: Position) -> bool:
    """Return whether a layer with this position rotates its keys."""
    return isinstance(position, Rotary) and position.rotates


class Scheme(Protocol):
    """What every position scheme can tell about a base model."""

    def of_layers(self, base_model: Any, length: int, /) -> tuple[Position, ...]:
        """Return the position of each layer, for a cache whose queries see at most `length` tokens."""
        ...

    def modules(self, base_model: Any, /) -> list[nn.Module]:
        """Return the modules that need not run, because attention takes its positions from the call."""
        ...


def every_layer(config: PreTrainedConfig, layer_idx: int) -> bool:
    """Return True, in an architecture whose layers all rotate."""
    return True


def sliding_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    """Return whether the layer slides, in an architecture of which only sliding layers rotate."""
    return bool(config.layer_types[layer_idx] == "sliding_attention")


def sliding_layers_if_any(config: PreTrainedConfig, layer_idx: int) -> bool:
    """Return the same, in an architecture whose layers all rotate when its config has no sliding window."""
    return config.sliding_window is None or sliding_layers(config, layer_idx)


def by_no_rope_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    """Return whether the layer rotates. Despite its name, `config.no_rope_layers` has a 1 for a layer that does."""
    return bool(config.no_rope_layers[layer_idx])


@dataclass(frozen=True)
class Rope:
    """Rotary positions that a module of the base model makes.

    Parameters
    ----------
    pairing : Pairing, default HALVES
        How attention pairs the dimensions that it rotates.
    rotates : callable, default all layers
        (config, layer index) -> whether the layer rotates its queries and keys.
    module : str, default "rotary_emb"
        The path of the module in the base model. One inside an attention module stands for those of all layers.
    """

    pairing: Pairing = HALVES
    rotates: Callable[[PreTrainedConfig, int], bool] = every_layer
    module: str = "rotary_emb"

    def of_layers(self, base_model: PreTrainedModel, length: int) -> tuple[Position, ...]:
        module: Any = base_model.get_submodule(self.module)
        config = base_model.config
        by_name = isinstance(module.rope_type, dict)
        names = (config.layer_types if by_name else [None] * config.num_hidden_layers)[: config.num_hidden_layers]
        rotaries = {
            (name, rotates): Rotary(module_frequencies(module, length, name), self.pairing, rotates)
            for name in set(names) & set(module.rope_type if by_name else [None])
            for rotates in (True, False)
        }
        return tuple(rotaries.get((name, self.rotates(config, index))) for index, name in enumerate(names))

    def modules(self, base_model: PreTrainedModel) -> list[nn.Module]:
        return [] if "." in self.module else [base_model.get_submodule(self.module)]


class SameInAllLayers:
    """Positions that every layer knows alike, and that no module of the base model makes."""

    def position(self, base_model: PreTrainedModel) -> Position:
        """Return the position of every layer."""
        raise NotImplementedError

    def of_layers(self, base_model: PreTrainedModel, length: int) -> tuple[Position, ...]:
        count: int = base_model.config.num_hidden_layers
        return (self.position(base_model),) * count

    def modules(self, base_model: PreTrainedModel) -> list[nn.Module]:
        return []


@dataclass(frozen=True)
class NoPositions(SameInAllLayers):
    """Attention does not know where its keys are."""

    def position(self, base_model: PreTrainedModel) -> Position:
        return None


@dataclass(frozen=True)
class RopeTable(SameInAllLayers):
    """Rotary positions that the model looks up in a finite table. Here they are computed.

    Parameters
    ----------
    width : callable
        config -> number of dimensions that are rotated.
    pairing : Pairing, default NEIGHBOURS
        How attention pairs these dimensions.
    """

    width: Callable[[PreTrainedConfig], int]
    pairing: Pairing = NEIGHBOURS

    def position(self, base_model: PreTrainedModel) -> Position:
        return Rotary(Frequencies(PlainFrequencies(self.width(base_model.config))), self.pairing)


@dataclass(frozen=True)
class LinearBias(SameInAllLayers):
    """Scores fall with the distance (ALiBi).

    Parameters
    ----------
    alibi : callable
        base model -> Alibi.
    """

    alibi: Callable[[Any], Alibi]

    def position(self, base_model: PreTrainedModel) -> Position:
        return self.alibi(base_model)
