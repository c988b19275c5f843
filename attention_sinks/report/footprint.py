"""How many bytes one conversation takes, by the window and the dtype."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache
from ..cache.precision import FORMS, Form, Forms, InGroups
from ..cache.sink_layer import SinkLayer

DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes of a model."""


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


def footprints(setup: Setup, cache: AttentionSinkKVCache) -> dict[str, Footprint]:
    """Return the footprint by the dtype of the model and of a cache that rounds, from the cache of a model in bfloat16.

    What such a model keeps in float32, as states often are, is also in float32 where the model is. float16 takes as
    much as bfloat16. Beside a cache of whole numbers the model is in 16 bits; those that it refuses are missing.
    """
    found = {str(dtype).removeprefix("torch."): _footprint(setup, cache, dtype) for dtype in DTYPES}
    for cache_dtype, forms in FORMS.items():
        if isinstance(forms[0], InGroups):
            with suppress(NotImplementedError, ValueError):  # values that are keys, heads that no group divides
                setup.fit(replace(cache.settings, cache_dtype=cache_dtype))
                found[cache_dtype] = _footprint(setup, cache, torch.bfloat16, forms)
    return found


def _footprint(setup: Setup, cache: AttentionSinkKVCache, dtype: torch.dtype, forms: Forms | None = None) -> Footprint:
    """Return what `cache` would take in a model in `dtype`, and if it rounded keys and values to `forms`."""
    slots, own_windows = [], []
    rounded: dict[int, torch.Tensor] = {}
    for kind, layer in zip(setup.kinds, cache.layers, strict=True):
        states = layer.buffers[:2] if isinstance(layer, SinkLayer) else ()
        if forms is not None:
            rounded |= {id(each): _as_kept(each, form) for each, form in zip(states, forms, strict=False)}
        if kind.window is not None and setup.native_window is None:
            own_windows.append(kind.window)
        else:
            slots += [rounded.get(id(each), each)[:, :, :1] for each in states]  # keys and values of one token
    footprint = Footprint(0, _bytes(slots, dtype), cache.settings.sink_size, min(own_windows, default=None))
    everything = [rounded.get(id(each), each) for each in cache.layer_stack.tensors]
    return replace(footprint, fixed=_bytes(everything, dtype) - footprint.at(cache.settings.window_size))


def _as_kept(states: torch.Tensor, form: Form) -> torch.Tensor:
    """Return a buffer for what is in `states`, in another form; ValueError when that is not possible."""
    return states.new_empty(*states.shape[:3], form.row(states.shape[3]), dtype=form.dtype)


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
    """Return the bytes that tensors of a model in bfloat16 would have if the model were in `dtype`."""
    return sum(
        tensor.numel() * max(tensor.itemsize, dtype.itemsize) if tensor.is_floating_point() else tensor.nbytes
        for tensor in tensors
    )
