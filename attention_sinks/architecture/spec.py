"""What can be particular to an architecture: the columns of the table in `models/registry.py`."""

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
    """The most tokens a query may see, and why."""

    tokens: int
    reason: str


def _no_limit(config: PreTrainedConfig) -> None:
    """Queries may see any number of tokens."""


def _no_extra_patches(model: PreTrainedModel, base: PreTrainedModel) -> Iterable[tuple[nn.Module, dict[str, Any]]]:
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
        (attention module, hidden states, BoundCache, LayerPlan, keyword arguments) -> output and weights. It is
        written out where the module does not use Transformers' `AttentionInterface`.
    bound_cache : type, optional
        A subclass of `streaming.bound_cache.BoundCache`, for base models that ask more of their cache than it has.
    accepts_4d_mask : bool, default True
        Whether the base model takes a ready mask of four dimensions.
    kinds : callable, default `layer_kinds`
        config -> LayerKind of each layer.
    states_continue : bool, default True
        Whether Transformers' states go on over a call of several tokens. Where they start anew, such a call is cut
        into single tokens.
    extra_patches : callable, optional
        (model, base model) -> other modules to patch, each with the members of its streaming class, as a rule a
        `forward`.
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
    forward: Callable[..., tuple[Any, ...]] | None = None
    bound_cache: type | None = None
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
        return self.positions(config) if callable(self.positions) else self.positions

    def streams(self, config: PreTrainedConfig) -> bool:
        """Whether a model with `config` can stream."""
        return self.unsupported_reason is None or not self.unsupported_reason(config)

    def check(self, config: PreTrainedConfig) -> None:
        """Raise NotImplementedError, with the cure, when `config` cannot stream.

        Every call asks again, since attention implementations may be changed at any time.
        """
        if self.unsupported_reason is not None and (reason := self.unsupported_reason(config)):
            raise NotImplementedError(f"model_type={config.model_type!r} {reason}")
