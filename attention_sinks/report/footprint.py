"""How many bytes one conversation takes, by the window and the dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache
from ..cache.sink_layer import SinkLayer


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
    """Return the footprint by the dtype of the model, from the cache of a model in bfloat16.

    What such a model keeps in float32, as states often are, is also in float32 where the model is. float16 takes as
    much as bfloat16.
    """
    everything, sinks = cache.layer_stack.tensors, cache.settings.sink_size
    slots, own_windows = [], []
    for kind, layer in zip(setup.kinds, cache.layers, strict=True):
        if kind.window is not None and setup.native_window is None:
            own_windows.append(kind.window)
        elif isinstance(layer, SinkLayer):
            slots += [buffer[:, :, :1] for buffer in layer.buffers[:2]]  # keys and values of one token
    own_window = min(own_windows, default=None)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        footprint = Footprint(0, _bytes(slots, dtype), sinks, own_window)
        fixed = _bytes(everything, dtype) - footprint.at(cache.settings.window_size)
        found[str(dtype).removeprefix("torch.")] = replace(footprint, fixed=fixed)
    return found


def _bytes(tensors: list[torch.Tensor], dtype: torch.dtype) -> int:
    """Return the bytes that tensors of a model in bfloat16 would have if the model were in `dtype`."""
    return sum(
        tensor.numel() * max(tensor.itemsize, dtype.itemsize) if tensor.is_floating_point() else tensor.nbytes
        for tensor in tensors
    )
