"""How many bytes one conversation takes, by the window and the dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache
from ..cache.precision import FORMS
from ..cache.sink_layer import SinkLayer
from ..settings import CacheDtype
from .shapes import cache_of_one_token

IN_GROUPS: tuple[CacheDtype, ...] = ("int8", "int8-int4")
"""The dtypes of a cache of which the bytes do not follow from those of a model in this dtype."""


@dataclass(frozen=True)
class Footprint:
    """The bytes of one conversation, which are the same however long it is.

    Parameters
    ----------
    fixed : int
        What does not depend on the window: sinks, newest token, layers with a window of their own, states, counters.
    per_token : int
        What each token of the window adds.
    sink_size : int
        S.
    own_window : int or None
        How many tokens the layer sees natively that sees the fewest; None where all layers have sinks and window. A
        byte for each of the tokens that no layer has lost says whether it is one, or padding.
    """

    fixed: int
    per_token: int
    sink_size: int
    own_window: int | None

    def at(self, window_size: int) -> int:
        """Return the bytes for a window of `window_size` tokens."""
        visible = self.sink_size + window_size + 1
        marks = visible if self.own_window is None else min(visible, self.own_window)
        return self.fixed + window_size * self.per_token + marks


def footprints(setup: Setup) -> dict[str, Footprint]:
    """Return the footprint by the dtype of the model, and of a cache that rounds, from a model in bfloat16.

    What such a model keeps in float32, as states often are, is also in float32 where the model is. float16 takes as
    much as bfloat16. With "int8" and "int8-int4" the model is in 16 bits; they are missing where it refuses them.

    Raises
    ------
    ValueError
        When the model cannot be called.
    """
    plain = cache_of_one_token(setup.model)
    found = {dtype: _footprint(setup, plain, getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    for cache_dtype in IN_GROUPS:
        if _can_round(setup, plain, cache_dtype):
            found[cache_dtype] = _footprint(setup, cache_of_one_token(setup.model, cache_dtype), torch.bfloat16)
    return found


def _can_round(setup: Setup, plain: AttentionSinkKVCache, cache_dtype: CacheDtype) -> bool:
    """Return whether a cache of the model can have this dtype; `plain` is one that does not round."""
    try:
        AttentionSinkKVCache(setup.model, attention_sink_cache_dtype=cache_dtype)
        for layer in plain.layers:
            if isinstance(layer, SinkLayer):
                for form, buffer in zip(FORMS[cache_dtype], layer.buffers, strict=False):  # none for the sinks
                    form.row(buffer.shape[-1])
    except (NotImplementedError, ValueError):  # values that are keys, heads that no group divides
        return False
    return True


def _footprint(setup: Setup, cache: AttentionSinkKVCache, dtype: torch.dtype) -> Footprint:
    """Return what `cache` would take if the model, which is in bfloat16, were in `dtype`."""
    slots, own_windows = [], []
    for kind, layer in zip(setup.kinds, cache.layers, strict=True):
        if kind.window is not None and setup.native_window is None:
            own_windows.append(kind.window)
        elif isinstance(layer, SinkLayer):
            slots += [buffer[:, :, :1] for buffer in layer.buffers[:2]]  # keys and values of one token
    footprint = Footprint(0, _bytes(slots, dtype), cache.settings.sink_size, min(own_windows, default=None))
    return replace(footprint, fixed=_bytes(cache.layer_stack.tensors, dtype) - footprint.at(cache.settings.window_size))


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
    """Return the bytes that tensors of a model in bfloat16 would have if the model were in `dtype`."""
    return sum(
        tensor.numel() * max(tensor.itemsize, dtype.itemsize) if tensor.is_floating_point() else tensor.nbytes
        for tensor in tensors
    )
