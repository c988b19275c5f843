"""BLOOM has ALiBi, projections fused by head, and attention of its own, which also adds the residual."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..positions.alibi import Alibi, alibi_slopes
from ..positions.schemes import LinearBias
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache


def _attention(
    module: Any,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    cache: BoundCache,
    layer: LayerPlan,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    dropout = module.attention_dropout.p if module.training else 0.0
    output, weights = attend(module, query, key, value, cache, layer, module.inv_norm_factor, dropout)
    output = nn.functional.dropout(module.dense(output.flatten(2)), module.hidden_dropout, module.training)
    return output + residual, weights


def _alibi(base_model: transformers.BloomModel) -> Alibi:
    return Alibi(alibi_slopes(base_model.config.n_head))


ARCHITECTURE = Architecture("BloomAttention", LinearBias(_alibi), forward=_attention, accepts_4d_mask=False)
