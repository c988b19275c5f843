"""Doge gives every key a bias of its own, which it makes from the value."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..architecture.spec import Architecture, Limit
from ..plan.layer import LayerPlan
from ..streaming.attention import attend_cached
from ..streaming.bound_cache import BoundCache
from .projections import project


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = project(module, hidden_states)
    query, key, value = (states.transpose(1, 2) for states in (module.q_norm(query), module.k_norm(key), value))
    tables = layer.position_embeddings
    query, key = (layer.rotate(states, tables).to(value.dtype) for states in (query, key))
    key, value = cache.update(key, value, module.layer_idx)
    strength = module.dt_proj(value.transpose(1, 2).flatten(2))
    bias = torch.exp(module.A * nn.functional.softplus(strength)).transpose(1, 2)
    dropout = module.attention_dropout if module.training else 0.0
    output, weights = attend_cached(module, query, key, value, layer, module.scaling, dropout, key_bias=bias)
    return module.o_proj(output.flatten(2)), weights


def _limit(config: PreTrainedConfig) -> Limit:
    length = config.keep_window_size
    return Limit(length, f"beyond config.keep_window_size={length} Doge drops keys by their bias")


ARCHITECTURE = Architecture("DogeAttention", forward=_attention, limit=_limit)
