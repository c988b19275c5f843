"""Qwen4-Exp has gated attention to keys that an indexer selects, and linear layers that also hash the last tokens.

The indexer leaves nothing out while a query sees no more blocks of keys than it may select. A cache may not be larger
than that, so the indexer does not run, and it keeps no keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..architecture.layer_kinds import LayerKind, layer_kinds
from ..architecture.spec import Architecture, Limit
from ..plan.layer import LayerPlan
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, gate = module.q_proj(hidden_states).unflatten(-1, (-1, 2 * module.head_dim)).chunk(2, dim=-1)
    key, value = (
        project(hidden_states).unflatten(-1, (-1, module.head_dim)) for project in (module.k_proj, module.v_proj)
    )
    query, key, value = (states.transpose(1, 2) for states in (module.q_norm(query), module.k_norm(key), value))
    query, key = (layer.rotate(states, layer.position_embeddings) for states in (query, key))
    dropout = module.attention_dropout if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.scaling, dropout)
    return module.o_proj((output * gate.sigmoid()).flatten(2)), weights


def _limit(config: PreTrainedConfig) -> Limit | None:
    """Return up to how many tokens the indexer, which selects whole blocks and all tokens after them, selects all."""
    if config.indexer_budget is None:
        return None
    budget, block = config.indexer_budget, config.indexer_compress_ratio
    reason = (
        f"beyond config.indexer_budget={budget} and an unfinished block of config.indexer_compress_ratio={block} its "
        "indexer leaves keys out, which is not computed"
    )
    return Limit(budget + block - 1, reason)


def _kinds(config: PreTrainedConfig) -> tuple[LayerKind, ...]:
    """Return the kinds of layers. To those that hash the last tokens, the end of a text stands before every stream."""
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return tuple(replace(kind, no_token=end or 0) for kind in layer_kinds(config))


ARCHITECTURE = Architecture("Qwen4ExpTextAttention", forward=_attention, kinds=_kinds, limit=_limit)
