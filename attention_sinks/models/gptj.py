"""GPT-J rotates neighbours in the first dimensions by a table. Until Transformers 5.23 it had attention of its own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architecture.spec import Architecture, Limit
from ..plan.layer import LayerPlan
from ..positions.rotary import NEIGHBOURS, NEIGHBOURS_SINE_FIRST
from ..positions.schemes import RopeTable
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache
from ..versions import GPTJ_IS_HANDED_POSITION_EMBEDDINGS
from .projections import project


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = (states.transpose(1, 2) for states in project(module, hidden_states))
    query, key = (NEIGHBOURS.rotate(states, layer.position_embeddings) for states in (query, key))
    dropout = module.attn_dropout.p if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.head_dim**-0.5, dropout)
    return module.resid_dropout(module.out_proj(output.flatten(2))), weights


def rotated_width(config: PreTrainedConfig) -> int:
    """Return how many dimensions of a head are rotated."""
    return int(config.rotary_dim or config.hidden_size // config.num_attention_heads)


def table_limit(config: PreTrainedConfig) -> Limit:
    """Return the limit that the model's table of positions sets."""
    length = config.max_position_embeddings
    return Limit(length, f"its table of positions ends at config.max_position_embeddings={length}")


def _unsupported_reason(config: PreTrainedConfig) -> str | None:
    if "flash" in (config._attn_implementation or ""):  # another class, with its own way through the cache
        return f"does not stream with {config._attn_implementation}; use attn_implementation='eager'."
    return None


if GPTJ_IS_HANDED_POSITION_EMBEDDINGS:
    ARCHITECTURE = Architecture("GPTJAttention", RopeTable(rotated_width, NEIGHBOURS_SINE_FIRST), limit=table_limit)
else:
    ARCHITECTURE = Architecture(
        "GPTJAttention",
        RopeTable(rotated_width),
        forward=_attention,
        limit=table_limit,
        unsupported_reason=_unsupported_reason,
    )
