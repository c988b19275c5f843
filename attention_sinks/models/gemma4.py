"""Gemma 4 has assistants, draft models that read its keys and values (`shared_kv_states`) and keep none.

An assistant counts positions in columns of the input and takes the place of the next token. It is handed what a query
there sees, from old to new, with keys rotated to where that query must see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..architecture.modules import named_arguments
from ..architecture.setup import Setup, setup_of
from ..architecture.spec import Architecture
from ..cache.cache import AttentionSinkKVCache
from ..cache.columns import KeysValues, rotated
from ..cache.sink_layer import SinkLayer
from ..streaming.forward import call_plain
from ..versions import CACHE, with_both_names


class SharedStates(Mapping[str, KeysValues]):
    """A mapping from a kind of layer to keys and values of the last layer of that kind that has its own.

    They are made when they are asked for. By then, tokens that were drafted in vain have been taken back.
    """

    def __init__(self, cache: AttentionSinkKVCache, setup: Setup) -> None:
        self.cache = cache
        names = setup.model.config.layer_types
        self.layers = {names[index]: index for index, kind in enumerate(setup.kinds) if kind.stores}

    def __getitem__(self, name: str) -> KeysValues:
        """Return keys and values, both [1, num_key_value_heads, tokens, head_dim]."""
        index = self.layers[name]
        layer, position = self.cache.layers[index], self.cache.table().positions[index]
        counters = self.cache.streams.counters
        assert isinstance(layer, SinkLayer) and counters is not None  # a call of the model has left them
        (seen,), (origin,), columns, reach = counters.seen, counters.origin, self.cache.streams.columns, layer.reach
        sinks = range(min(reach.sink_size, seen))
        recent = range(max(reach.sink_size, seen - reach.window_size), seen)
        keys, values, first_keys = layer.decoded()
        slots = reach.slot_of(torch.tensor([*sinks, *recent], dtype=torch.long, device=keys.device))
        recent_keys = keys[:, :, slots[len(sinks) :]]
        sinks_moved_by, recent_moved_by = columns - min(seen, reach.cached_size), columns - seen + origin
        rotated_sinks = rotated(first_keys[:, :, : len(sinks)], position, _as_shift(sinks_moved_by, keys))
        rotated_recent = rotated(recent_keys, position, _as_shift(recent_moved_by, keys))
        return torch.cat([rotated_sinks, rotated_recent], dim=2), values[:, :, slots]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _as_shift(shift: int, keys: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[shift]], dtype=torch.long, device=keys.device)


def _head(head: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the head's own forward and add the shared states of the cache where they are asked for."""
    given = named_arguments(type(head), args, kwargs)
    wanted = given.pop("return_shared_kv_states", False)
    output = with_both_names(call_plain(head, **given))
    if wanted and isinstance(output[CACHE], AttentionSinkKVCache):
        output["shared_kv_states"] = SharedStates(output[CACHE], setup_of(head))
    return output


def _extra_patches(model: PreTrainedModel, base_model: PreTrainedModel) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [] if model is base_model else [(model, {"forward": _head})]


TEXT = Architecture("Gemma4TextAttention", extra_patches=_extra_patches)
UNIFIED = Architecture("Gemma4UnifiedTextAttention", extra_patches=_extra_patches)
