"""A cache as tensors and plain data, and back, for `AttentionSinkKVCache.save` and `load`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture.setup import setup_of
from ..settings import SinkSettings
from .fingerprint import difference
from .fitting import check_tensors
from .layer import Layer
from .layer_stack import LayerStack
from .schema import CacheState, Seen, checked
from .standing import standing_of


def take_snapshot(
    settings: SinkSettings, stack: LayerStack, model: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a cache by name, and everything else about it as plain data.

    Parameters
    ----------
    settings : SinkSettings
        S, W, the prefill mode and the dtype of the cache.
    stack : LayerStack
        Its layers.
    model : dict
        The fingerprint of the model that it serves.
    """
    tensors = {
        f"layers.{index}.{number}": tensor
        for index, layer in enumerate(stack.layers)
        for number, tensor in enumerate(layer.tensors)
    }
    state: dict[str, Any] = {
        "kind": "AttentionSinkKVCache",
        "settings": [settings.sink_size, settings.window_size, settings.prefill],
        "cache_dtype": settings.cache_dtype,
        "layers": [_reach_of(layer) for layer in stack.layers],
        "model": model,
        "columns": stack.streams.columns,
        "rows": None,
    }
    if (now := stack.streams.now()) is not None:
        counters, history = now[0], now[1].with_log_of(0, now[0])
        state["rows"] = {
            "seen": list(counters.seen),
            "base": list(counters.origin),
            "floor": list(history.floor),
            "remembered": history.length,
            "tokens": [hex(bits) for bits in history.tokens],
        }
    return tensors, state


def fitting_state(
    tensors: dict[str, torch.Tensor], state: dict[str, Any], model: nn.Module, known: dict[str, Any]
) -> CacheState:
    """Return what `state` says of a cache when it is one of `model` and its S and W are those of `tensors`.

    `known` is the fingerprint of `model`.

    Raises
    ------
    ValueError
        When it is the snapshot of something else, of another model's cache or of another prefill mode, or none that
        `take_snapshot` takes.
    """
    saved, own = checked(CacheState, state), setup_of(model)
    if (why := difference(dict(saved.model), known)) is not None:
        raise ValueError(f"holds the cache of another model: {why}; use the model it was saved with.")
    sink_size, window_size, prefill = saved.settings
    slots = {tensor.shape[2] for tensor in tensors.values() if tensor.dim() == 4}
    if saved.rows is not None and sink_size + window_size + 1 not in slots:
        raise ValueError(f"says S={sink_size} and W={window_size}, which no tensor in it has; use an intact copy.")
    if prefill != own.settings.prefill:
        raise ValueError(
            f"holds a cache with attention_sink_prefill={prefill!r}, the model has {own.settings.prefill!r}; "
            f"call inject_attention_sinks(model, attention_sink_prefill={prefill!r}) first."
        )
    return saved


def restore_snapshot(
    stack: LayerStack, model: PreTrainedModel, tensors: dict[str, torch.Tensor], state: CacheState
) -> None:
    """Bring `stack`, that of a new cache for the base model `model`, to where the snapshot was taken.

    Raises
    ------
    ValueError
        When the snapshot is not of such a cache. Nothing has been made then.
    """
    reaches = [_reach_of(layer) for layer in stack.layers]
    if stack.keeps_states:
        raise ValueError("holds a cache, but this model keeps states, which no file holds; use the model it is of.")
    if reaches != state.layers:
        raise ValueError(
            f"holds a cache whose layers see {state.layers!r:.200} (S, W, dense, chunked), this model's see "
            f"{reaches!r:.200}; use the model it was saved with."
        )
    check_tensors(stack.layers, model, tensors, None if state.rows is None else len(state.rows.seen))
    if state.rows is None:
        return
    standing, devices = standing_of(state.rows, state.columns, stack.streams.room), _devices(model)
    for index, layer in enumerate(stack.layers):
        if layer.reach is not None:
            own = [tensors[f"layers.{index}.{number}"] for number in range(3)]
            layer.restore([tensor.to(devices.get(index, tensor.device)) for tensor in own])
    stack.streams.change(standing, stack.group_sinks, devices.get(0, torch.device("cpu")))


def _reach_of(layer: Layer) -> Seen | None:
    """Return what the queries of a layer see, or None for a layer without keys of its own."""
    if layer.reach is None:
        return None
    reach = layer.reach
    return reach.sink_size, reach.window_size, reach.dense, reach.chunked


def _devices(model: PreTrainedModel) -> dict[int, torch.device]:
    """Return the device of each layer's keys, by layer index. Offloaded weights are on the device of their hook."""
    devices = {}
    for module in model.modules():
        index = module.__dict__.get("layer_idx")  # a plain attribute, of a few modules among many
        if not isinstance(index, int) or (weight := next(module.parameters(), None)) is None:
            continue
        hook = getattr(module, "_hf_hook", None)
        device = getattr(hook, "execution_device", None) if weight.is_meta else weight.device
        if device is not None:
            devices[index] = torch.device(device)
    return devices
