"""HunYuan V1 normalises queries and keys, with a weight for each dimension, after it has rotated them.

Scores are (w_q * R(c) q) . (w_k * R(p) k), which depends on the places c and p and not on their distance alone. With
x = w_q * w_k * R(c) q it is x . R(p) k, and for a key that stands d further on in its buffer than in the cache
x . R(p) k = (R(d) x) . (R(p + d) k): keys are cached rotated and without their weight, queries carry both weights and
are moved by what separates model positions from cache positions.
"""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache
from .projections import project


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = (states.transpose(1, 2) for states in project(module, hidden_states))
    assert layer.rotary is not None  # all layers rotate
    place, moved = layer.plan.cache_position, layer.plan.model_position - layer.plan.cache_position
    query = layer.rotate(query, layer.rotary.embeddings(place, query.dtype))
    query = module.query_layernorm(query) * module.key_layernorm.weight
    query = layer.rotate(query, layer.rotary.tables(moved, query.dtype))
    key = layer.rotate(_normalised(key, module.key_layernorm.variance_epsilon), layer.position_embeddings)
    dropout = module.attention_dropout if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.scaling, dropout)
    return module.o_proj(output.flatten(2)), weights


def _normalised(states: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Scale `states` to a root mean square of one over the last dimension, which rotations do not change."""
    wide = states.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(states.dtype)


DENSE = Architecture("HunYuanDenseV1Attention", forward=_attention)
MIXTURE = Architecture("HunYuanMoEV1Attention", forward=_attention)
