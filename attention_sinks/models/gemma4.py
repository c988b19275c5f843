"""Gemma 4 beside its assistants: draft models that read its keys and values (`shared_kv_states`) and keep none.

An assistant stands where the next token will, in columns of the input. It is handed what a query there sees, from old
to new, with keys turned to where they must appear from there.
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
from ..positions.rotary import Rotary
from ..streaming.forward import call_plain
from ..versions import CACHE, with_both_names


class SharedStates(Mapping):
    """Kind of layer -> keys and values of the last layer of that kind that has its own.

    They are made when they are asked for: by then tokens that were drafted in vain have been taken back.
    """

    def __init__(self, cache: AttentionSinkKVCache, setup: Setup) -> None:
        self.cache = cache
        names = setup.model.config.layer_types
        self.layers = {names[index]: index for index, kind in enumerate(setup.kinds) if kind.stores}

    def __getitem__(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [1, num_key_value_heads, tokens, head_dim]."""
        index = self.layers[name]
        layer, rotary = self.cache.layers[index], self.cache.table().positions[index]
        counters, history = self.cache.streams.now()
        (seen,), (origin,), columns, reach = counters.seen, counters.origin, history.columns, layer.reach
        sinks = range(min(reach.sink_size, seen))
        recent = range(max(reach.sink_size, seen - reach.window_size), seen)
        slots = reach.slot_of(torch.tensor([*sinks, *recent], dtype=torch.long, device=layer.keys.device))
        keys, values = layer.keys[:, :, slots], layer.values[:, :, slots]
        nearer = _rotated(layer.sinks[:, :, : len(sinks)], rotary, columns - min(seen, reach.cached_size))
        recent_keys = _rotated(keys[:, :, len(sinks) :], rotary, columns - seen + origin)
        return torch.cat([nearer, recent_keys], dim=2), values

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _rotated(keys: torch.Tensor, rotary: Rotary, shift: int) -> torch.Tensor:
    return rotary.pairing.rotate(keys, rotary.tables(torch.tensor([[shift]], dtype=torch.long, device=keys.device)))


def _head(head: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The head's own forward, with the shared states of the cache where they are asked for."""
    given = named_arguments(type(head), args, kwargs)
    wanted = given.pop("return_shared_kv_states", False)
    output = with_both_names(call_plain(head, **given))
    if wanted and isinstance(output[CACHE], AttentionSinkKVCache):
        output["shared_kv_states"] = SharedStates(output[CACHE], setup_of(head))
    return output


def _extra_patches(model: PreTrainedModel, base: PreTrainedModel) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [(model, {"forward": _head})] if model is not base else []


TEXT = Architecture("Gemma4TextAttention", extra_patches=_extra_patches)
UNIFIED = Architecture("Gemma4UnifiedTextAttention", extra_patches=_extra_patches)
