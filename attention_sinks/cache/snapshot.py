"""A cache as tensors and plain data, and back: what `AttentionSinkKVCache.save` and `load` are made of."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ..architecture.setup import setup_of
from ..plan.counters import Counters
from .fingerprint import difference, fingerprint
from .history import History
from .stream_state import Standing

if TYPE_CHECKING:
    from .cache import AttentionSinkKVCache

KIND = "AttentionSinkKVCache"


def take_snapshot(cache: AttentionSinkKVCache, model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors by name, and everything else about `cache`, which serves the base model `model`."""
    streams = cache.streams
    tensors = {
        f"layers.{index}.{number}": tensor
        for index, layer in enumerate(cache.layers)
        for number, tensor in enumerate(layer.tensors)
    }
    state = {
        "kind": KIND,
        "settings": list(astuple(cache.settings)),
        "layers": [_reach_of(layer) for layer in cache.layers],
        "model": fingerprint(model),
        "columns": streams.columns,
        "rows": None,
    }
    if streams.rows is not None:
        trail = streams.trail.with_log_of(0, streams.rows)
        state["rows"] = {
            "seen": list(streams.rows.seen),
            "base": list(streams.rows.base),
            "floor": list(trail.floor),
            "remembered": trail.length,
            "tokens": [hex(bits) for bits in trail.tokens],
        }
    return tensors, state


def settings_of(state: dict[str, Any], model: PreTrainedModel) -> tuple[int, int]:
    """S and W of a snapshot that fits `model`.

    Raises
    ------
    ValueError
        When it is the snapshot of something else, of another model's cache or of another prefill mode.
    """
    if state.get("kind") != KIND:
        raise ValueError(f"holds no {KIND} but a {state.get('kind')}; use the class that saved it.")
    sink_size, window_size, prefill = state["settings"]
    own = setup_of(model)
    if (why := difference(state["model"], fingerprint(own.model))) is not None:
        raise ValueError(f"holds the cache of another model: {why}; use the model it was saved with.")
    if prefill != own.settings.prefill:
        raise ValueError(
            f"holds a cache with attention_sink_prefill={prefill!r}, the model has {own.settings.prefill!r}; "
            f"call inject_attention_sinks(model, attention_sink_prefill={prefill!r}) first."
        )
    return sink_size, window_size


def restore_snapshot(cache: AttentionSinkKVCache, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Bring the new `cache` to where the snapshot was taken."""
    reaches = [_reach_of(layer) for layer in cache.layers]
    if reaches != state["layers"]:
        raise ValueError(
            f"holds a cache whose layers see {state['layers']} (S, W, dense, chunked), this model's see {reaches}; "
            "use the model it was saved with."
        )
    if state["rows"] is None:
        return
    rows = state["rows"]
    devices = _devices(setup_of(cache._owner()).model)
    for index, layer in enumerate(cache.layers):
        if _reach_of(layer) is not None:
            own = [tensors[f"layers.{index}.{number}"] for number in range(3)]
            layer.restore([tensor.to(devices.get(index, tensor.device)) for tensor in own])
    streams = cache.streams
    bits = tuple(int(text, 16) for text in rows["tokens"])
    trail = History(streams.room, rows["remembered"], bits, tuple(rows["floor"]))
    standing = Standing(Counters(tuple(rows["seen"]), tuple(rows["base"])), state["columns"], trail)
    streams.stand(standing, devices.get(0, torch.device("cpu")))


def _reach_of(layer: Any) -> list | None:
    """What the queries of a layer see, as JSON can hold it; None for a layer without keys of its own."""
    return list(astuple(layer.reach)) if hasattr(layer, "reach") else None


def _devices(model: PreTrainedModel) -> dict[int, torch.device]:
    """The device of each layer's keys, by layer index; layers whose weights wait elsewhere name their hook's."""
    devices = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        weight = next(module.parameters(), None)
        if isinstance(index, int) and weight is not None:
            hook = getattr(module, "_hf_hook", None)
            device = getattr(hook, "execution_device", None) if weight.is_meta else weight.device
            if device is not None:
                devices[index] = torch.device(device)
    return devices
