"""What can be particular to an architecture: the columns of the table in `architectures`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..positions.alibi import Alibi
from ..positions.frequencies import module_frequencies, plain_frequencies
from ..positions.rotary import HALVES, NEIGHBOURS, Pairing, Rotary
from ..streaming.bound_cache import CallView
from .layer_kinds import LayerKind, layer_kinds

Position = Rotary | Alibi | None
"""How a layer knows where its keys are; None: it does not."""


def every_layer(config: PreTrainedConfig, layer_idx: int) -> bool:
    return True


def sliding_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    return config.layer_types[layer_idx] == "sliding_attention"


def sliding_layers_if_any(config: PreTrainedConfig, layer_idx: int) -> bool:
    return config.sliding_window is None or sliding_layers(config, layer_idx)


def by_no_rope_layers(config: PreTrainedConfig, layer_idx: int) -> bool:
    """`config.no_rope_layers` has 1, despite its name, where a layer turns."""
    return bool(config.no_rope_layers[layer_idx])


@dataclass(frozen=True)
class Rope:
    """Rotary positions made by one module of the base model.

    Parameters
    ----------
    pairing : Pairing, default HALVES
        How it pairs the dimensions it turns.
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
            (name, turned): Rotary(partial(module_frequencies, module, length, name), self.pairing, turned)
            for name in set(names) & set(module.rope_type if by_name else [None])
            for turned in (True, False)
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
        config -> number of dimensions that are turned.
    pairing : Pairing, default NEIGHBOURS
        How attention pairs these dimensions.
    """

    width: Callable[[PreTrainedConfig], int]
    pairing: Pairing = NEIGHBOURS

    def position(self, base: PreTrainedModel) -> Position:
        return Rotary(partial(plain_frequencies, self.width(base.config)), self.pairing)


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


@dataclass(frozen=True)
class Limit:
    """The most tokens a query may see, and why."""

    tokens: int
    reason: str


def _nothing(config: PreTrainedConfig) -> None:
    """No limit, no objection."""


def _no_extra_patches(model: PreTrainedModel, base: PreTrainedModel) -> Iterable[tuple[nn.Module, Callable]]:
    return ()


@dataclass(frozen=True)
class Architecture:
    """Facts about one `config.model_type`.

    Parameters
    ----------
    attention : str
        Class name of its attention modules, which call `Cache.update`.
    positions : Scheme or callable
        How its layers know positions; a function of the config where that decides.
    rotated : {"keys", "values"}, default "keys"
        Where in the cache the rotated part lies; latent attention keeps it in the values.
    forward : callable, optional
        (attention module, hidden states, LayerView, keyword arguments) -> output and weights: written out where the
        module does not use Transformers' `AttentionInterface`.
    view : type, default CallView
        What stands for the cache during a call.
    accepts_4d_mask : bool, default True
        Whether the base model takes a ready mask of four dimensions.
    kinds : callable, default `layer_kinds`
        config -> LayerKind of each layer.
    states_continue : bool, default True
        Whether Transformers' states go on over a call of several tokens. Where they start anew, such a call is cut
        into single tokens.
    extra_patches : callable, optional
        (model, base model) -> other modules to patch, each with what runs in place of its forward.
    limit : callable, optional
        config -> Limit or None.
    unsupported_reason : callable, optional
        config -> why this configuration cannot stream, or None.
    notes : str, default ""
        What the support table cannot tell from the other facts.
    """

    attention: str
    positions: Scheme | Callable[[PreTrainedConfig], Scheme] = Rope()
    rotated: str = "keys"
    forward: Callable[..., tuple[torch.Tensor, Any]] | None = None
    view: type[CallView] = CallView
    accepts_4d_mask: bool = True
    kinds: Callable[[PreTrainedConfig], tuple[LayerKind, ...]] = layer_kinds
    states_continue: bool = True
    extra_patches: Callable[[PreTrainedModel, PreTrainedModel], Iterable[tuple[nn.Module, Callable]]] = (
        _no_extra_patches
    )
    limit: Callable[[PreTrainedConfig], Limit | None] = _nothing
    unsupported_reason: Callable[[PreTrainedConfig], str | None] = _nothing
    notes: str = ""

    def scheme(self, config: PreTrainedConfig) -> Scheme:
        return self.positions(config) if callable(self.positions) else self.positions

    def check(self, config: PreTrainedConfig) -> None:
        """NotImplementedError, with the cure, when `config` cannot stream; asked again at each call, since attention
        implementations may be changed at any time."""
        if reason := self.unsupported_reason(config):
            raise NotImplementedError(f"model_type={config.model_type!r} {reason}")
