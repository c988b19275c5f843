"""CodeGen is like GPT-J, but one projection interleaves queries, values and keys in four groups."""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..positions.rotary import NEIGHBOURS, NEIGHBOURS_SINE_FIRST_WIDE
from ..positions.schemes import RopeTable
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache
from ..versions import GPTJ_IS_HANDED_POSITION_EMBEDDINGS
from .gptj import rotated_width, table_limit


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    fused = module.qkv_proj(hidden_states).unflatten(-1, (4, 3, -1, module.head_dim))
    query, value, key = (states.flatten(2, 3).transpose(1, 2) for states in fused.unbind(3))
    query, key = (NEIGHBOURS.rotate(states, layer.position_embeddings) for states in (query, key))
    dropout = module.attn_dropout.p if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.head_dim**-0.5, dropout)
    return module.resid_dropout(module.out_proj(output.flatten(2))), weights


if GPTJ_IS_HANDED_POSITION_EMBEDDINGS:
    ARCHITECTURE = Architecture(
        "CodeGenAttention", RopeTable(rotated_width, NEIGHBOURS_SINE_FIRST_WIDE), limit=table_limit
    )
else:
    ARCHITECTURE = Architecture("CodeGenAttention", RopeTable(rotated_width), forward=_attention, limit=table_limit)
