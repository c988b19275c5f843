"""Falcon has rotary halves or ALiBi, as its config says, grouped or single key heads, and attention of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from ..architecture.spec import Architecture
from ..plan.layer import LayerPlan
from ..positions.alibi import Alibi, alibi_slopes
from ..positions.rotary import HALVES
from ..positions.schemes import LinearBias, Rope, Scheme
from ..streaming.attention import attend
from ..streaming.bound_cache import BoundCache


def _attention(
    module: Any, hidden_states: torch.Tensor, cache: BoundCache, layer: LayerPlan, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    queries, keys, values = _heads(module, hidden_states)
    if layer.position_embeddings is not None:
        queries, keys = (HALVES.rotate(states, layer.position_embeddings) for states in (queries, keys))
    dropout = module.attention_dropout.p if module.training and module.config.alibi else 0.0
    output, weights = attend(module, queries, keys, values, cache, layer, module.head_dim**-0.5, dropout)
    return module.dense(output.flatten(2)), weights


def _heads(module: Any, hidden_states: torch.Tensor) -> list[torch.Tensor]:
    """Return queries, keys and values [batch, heads, n, head_dim]. Keys are not repeated for the queries of a group."""
    fused = module.query_key_value(hidden_states)
    if not module.new_decoder_architecture:
        return [states.transpose(1, 2) for states in module._split_heads(fused)]
    groups = fused.unflatten(-1, (-1, module.num_heads // module.num_kv_heads + 2, module.head_dim))
    queries, keys, values = groups[..., :-2, :].flatten(2, 3), groups[..., -2, :], groups[..., -1, :]
    return [states.transpose(1, 2) for states in (queries, keys, values)]


def _positions(config: PreTrainedConfig) -> Scheme:
    return LinearBias(_alibi) if config.alibi else Rope()


def _alibi(base_model: transformers.FalconModel) -> Alibi:
    """Return the bias, which Falcon adds in bfloat16 and before it scales the scores."""
    heads = base_model.config.num_attention_heads
    return Alibi(alibi_slopes(heads), (base_model.config.hidden_size // heads) ** -0.5, torch.bfloat16)


def _unsupported_reason(config: PreTrainedConfig) -> str | None:
    if config.alibi and config._attn_implementation == "eager":
        return (
            "with alibi=True and attn_implementation='eager' adds its bias twice in Transformers itself; use "
            "attn_implementation='sdpa'."
        )
    if "flash" in (config._attn_implementation or ""):  # another class, with its own way through the cache
        return f"does not stream with {config._attn_implementation}; use attn_implementation='sdpa'."
    return None


ARCHITECTURE = Architecture(
    "FalconAttention",
    _positions,
    forward=_attention,
    accepts_4d_mask=False,
    unsupported_reason=_unsupported_reason,
    notes="`alibi=True`: ALiBi, sdpa only",
)
