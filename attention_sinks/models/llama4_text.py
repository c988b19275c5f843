"""Llama 4 rotates complex numbers in its chunked layers. The others have no positions and scale their queries."""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..positions.rotary import COMPLEX
from ..positions.schemes import Rope, by_no_rope_layers
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache
from .projections import project


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = project(module, hidden_states)
    if module.use_rope:
        query, key = (_rotate(states, layer.position_embeddings) for states in (query, key))
    elif module.attn_temperature_tuning:
        query = (query * _temperature(module, layer.plan.cache_position)).to(query.dtype)
    if hasattr(module, "qk_norm"):
        query, key = module.qk_norm(query), module.qk_norm(key)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    dropout = module.attention_dropout if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.scaling, dropout)
    return module.o_proj(output.flatten(2)), weights


def _rotate(states: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate `states` [R, n, heads, head_dim] by complex `turns` [R, n, head_dim / 2]; neighbours are one number."""
    numbers = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * turns[:, :, None]).flatten(-2).type_as(states)


def _temperature(module: Any, place: torch.Tensor) -> torch.Tensor:
    """Return the factor [R, n, 1, 1] on queries at `place` [R, n] within the cache."""
    level = torch.floor((place.float() + 1.0) / module.floor_scale)
    factor: torch.Tensor = (torch.log1p(level) * module.attn_scale + 1.0)[..., None, None]
    return factor


ARCHITECTURE = Architecture("Llama4TextAttention", Rope(COMPLEX, by_no_rope_layers), forward=_attention)
