"""GPT-NeoX Japanese has rotary halves, and attention of its own, which hands a bias on to its layer."""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..positions.rotary import HALVES
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    fused = module.query_key_value(hidden_states).unflatten(-1, (module.num_attention_heads, 3, module.head_size))
    query, key, value = (states.transpose(1, 2) for states in fused.unbind(3))
    query, key = (HALVES.rotate(states, layer.position_embeddings) for states in (query, key))
    dropout = module.attention_dropout.p if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.head_size**-0.5, dropout)
    return module.dense(output.flatten(2)), weights, module.dense_bias


ARCHITECTURE = Architecture("GPTNeoXJapaneseAttention", forward=_attention)
