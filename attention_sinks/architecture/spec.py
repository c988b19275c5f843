"""The facts that can be particular to an architecture. Each entry of the table in `models/registry.py` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..positions.schemes import Rope, Scheme
from .layer_kinds import LayerKind, layer_kinds


@dataclass(frozen=True)
class Limit:
    """The most tokens that a query may see.

    Parameters
    ----------
    tokens : int
        How many they are.
    reason : str
        Why there may not be more, for an error message.
    """

    tokens: int
    reason: str


def _no_limit(config: PreTrainedConfig) -> None:
    """Return None: queries may see any number of tokens."""


def _no_extra_patches(
    model: PreTrainedModel, base_model: PreTrainedModel
) -> Iterable[tuple[nn.Module, dict[str, Any]]]:
    """Return nothing: no other module needs a patch."""
    return ()


@dataclass(frozen=True)
class Architecture:
    """The facts about one `config.model_type`.

    Parameters
    ----------
    attention : str
        The class name of its attention modules, which call `Cache.update`.
    positions : Scheme or callable, default Rope()
        How its layers know positions; config -> Scheme where that depends on the config.
    rotated : {"keys", "values"}, default "keys"
        Where in the cache the rotated part lies. Latent attention keeps it in the values.
    forward : callable, optional
        (attention module, hidden states, BoundCache, LayerPlan, keyword arguments) -> output and weights. An
        architecture whose attention does not use Transformers' `AttentionInterface` has one.
    bound_cache : callable, optional
        A subclass of `streaming.bound_cache.BoundCache`, or what makes an object of one, for base models that ask more
        of their cache than it has.
    accepts_4d_mask : bool, default True
        Whether the base model accepts a ready mask of four dimensions.
    kinds : callable, default `layer_kinds`
        config -> LayerKind of each layer.
    states_continue : bool, default True
        Whether Transformers' states continue over a call of several tokens. Where they start anew, such a call is cut
        into single tokens.
    extra_patches : callable, optional
        (model, base model) -> other modules to patch, each with the members of its streaming class. As a rule that is
        a `forward`.
    limit : callable, optional
        config -> Limit, or None when queries may see any number of tokens.
    unsupported_reason : callable, optional
        config -> why a model with this config cannot stream, or None when it can.
    notes : str, default ""
        What the support table says besides the other facts.
    """

    attention: str
    positions: Scheme | Callable[[PreTrainedConfig], Scheme] = Rope()
    rotated: str = "keys"
    forward: Callable[..., tuple[Any, ...]] | None = None
    bound_cache: Callable[..., Any] | None = None
    accepts_4d_mask: bool = True
    kinds: Callable[[PreTrainedConfig], tuple[LayerKind, ...]] = layer_kinds
    states_continue: bool = True
    extra_patches: Callable[[PreTrainedModel, PreTrainedModel], Iterable[tuple[nn.Module, dict[str, Any]]]] = (
        _no_extra_patches
    )
    limit: Callable[[PreTrainedConfig], Limit | None] = _no_limit
    unsupported_reason: Callable[[PreTrainedConfig], str | None] | None = None
    notes: str = ""

    def scheme(self, config: PreTrainedConfig) -> Scheme:
        """Return how the layers of a model with `config` know positions."""
        return self.positions(config) if callable(self.positions) else self.positions

    def streams(self, config: PreTrainedConfig) -> bool:
        """Return whether a model with `config` can stream."""
        return self.unsupported_reason is None or not self.unsupported_reason(config)

    def check(self, config: PreTrainedConfig) -> None:
        """Raise NotImplementedError, with the cure, when a model with `config` cannot stream.

        Every call checks it again, since a user may change the attention implementation at any time.
        """
        if self.unsupported_reason is not None and (reason := self.unsupported_reason(config)):
            raise NotImplementedError(f"model_type={config.model_type!r} {reason}")

    def check_layers(self, config: PreTrainedConfig) -> None:
        """Raise NotImplementedError, with the cure, when no layer of a model with `config` keeps keys and values."""
        if not any(kind.stores for kind in self.kinds(config)):
            raise NotImplementedError(
                f"model_type={config.model_type!r} with num_hidden_layers={config.num_hidden_layers} has no layer "
                "whose attention keeps keys and values, so there is nothing to stream; use a config that has one "
                "(more layers, or other layer types)."
            )
