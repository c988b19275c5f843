"""MPT has ALiBi, fused projections that may be clipped, and attention of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from ..architecture.spec import Architecture, Limit
from ..plan.layer import LayerPlan
from ..positions.alibi import Alibi, alibi_slopes
from ..positions.schemes import LinearBias
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    fused = module.Wqkv(hidden_states)
    if module.clip_qkv:
        fused = fused.clamp(-module.clip_qkv, module.clip_qkv)
    query, key, value = fused.unflatten(-1, (3, module.n_heads, -1)).permute(2, 0, 3, 1, 4)
    dropout = module.attn_dropout_p if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.softmax_scale, dropout)
    return module.out_proj(output.flatten(2)), weights


def _alibi(base_model: transformers.MptModel) -> Alibi:
    return Alibi(alibi_slopes(base_model.config.num_attention_heads))


def _limit(config: PreTrainedConfig) -> Limit:
    return Limit(config.max_seq_len, f"its ALiBi table ends at config.max_seq_len={config.max_seq_len}")


def _unsupported_reason(config: PreTrainedConfig) -> str | None:
    attention = config.attn_config
    for name in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        if getattr(attention, name, False):
            return f"with attn_config.{name}=True is not what Transformers' MPT computes; use a checkpoint without it."
    if not attention.alibi:
        return "with attn_config.alibi=False has learned positions, which do not stream; use a checkpoint with ALiBi."
    return None


ARCHITECTURE = Architecture(
    "MptAttention",
    LinearBias(_alibi),
    forward=_attention,
    limit=_limit,
    unsupported_reason=_unsupported_reason,
    notes="its config may turn the cache off: pass `use_cache=True` to `generate`",
)
