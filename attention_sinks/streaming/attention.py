"""The attention of an injected model: the function that attention modules find by name, and how a step attends.

The queries of a step attend to the buffers in place. Blocks are in `block_attention`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from ..plan.block import BlockPlan
from ..plan.layer import LayerPlan
from ..plan.reach import Reach
from ..plan.token import TokenPlan, slot_order
from .block_attention import attend_block, by_key_head
from .bound_cache import BoundCache
from .rounded_attention import attend_rounded, rounded_of

ATTENTION_NAME = "attention_sinks"
"""The name under which attention modules of an injected model find `attention_sinks_attention`."""

LAYER_PLAN = "attention_sink_layer"
"""The keyword by which an attention module hands its `LayerPlan` on to the attention function."""


def attention_sinks_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend in one layer for one call. The signature is that of Transformers' `AttentionInterface`.

    Parameters
    ----------
    module : nn.Module
        The attention module.
    query : torch.Tensor
        [batch, num_attention_heads, n, head_dim], rotated at model positions.
    key, value : torch.Tensor
        [batch, num_key_value_heads, keys, head_dim], as `SinkLayer.update` returned them: the slots in use for a step,
        the key layout for a block.
    attention_mask : torch.Tensor or None
        It is ignored: the plan of the call says who sees whom.
    scaling : float
        The factor on scores.
    dropout : float, default 0.0
        The share of the weights that is dropped.
    softcap : float, optional
        Scores are bent to at most this, as in Gemma 2.
    s_aux : torch.Tensor, optional
        [num_attention_heads], scores of a learned sink that has no value, as in gpt-oss.
    key_bias : torch.Tensor, optional
        [batch, num_key_value_heads, keys], added to every score with a key, as in Doge.
    **kwargs
        The layer's plan under the name `LAYER_PLAN`, and what else the attention implementation takes.

    Returns
    -------
    tuple
        Output [batch, n, num_attention_heads, head_dim] and, with the eager implementation, the weights
        [batch, num_attention_heads, n, keys], keys in the order of the stream.
    """
    layer: LayerPlan = kwargs.pop(LAYER_PLAN)
    plan, implementation = layer.plan, layer.implementation
    if isinstance(plan, BlockPlan):
        return attend_block(query, key, value, plan, layer, scaling, dropout, softcap, s_aux, key_bias)
    mask = plan.visible
    if layer.token_bias is not None or key_bias is not None:
        mask = _token_mask(mask, layer.token_bias, query, key_bias)
        implementation = "sdpa" if "flash" in implementation else implementation  # flash kernels take no bias
    if softcap is not None:
        kwargs["softcap"] = softcap
    if s_aux is not None:
        kwargs["s_aux"] = s_aux
    if implementation == "sdpa" and not dropout and softcap is None and s_aux is None:
        if layer.rounded and mask is not None and mask is plan.visible:  # that is, without a bias
            rounded = rounded_of(layer, query, key, value)
            if rounded is not None:
                return attend_rounded(query, rounded, mask, scaling), None
        return _sdpa_token(query, key, value, mask, scaling), None
    kwargs.update(scaling=scaling, dropout=dropout)
    return _attend_token(module, query, key, value, mask, plan, layer.reach, implementation, kwargs)


AttentionInterface.register(ATTENTION_NAME, attention_sinks_attention)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: BoundCache,
    layer: LayerPlan,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Store new keys and values and attend, for architectures that do not use the interface.

    `query`, `key` and `value` are [batch, heads, n, head_dim]. The result is that of `attention_sinks_attention`.
    """
    key, value = cache.update(key, value, module.layer_idx)
    return attend_cached(module, query, key, value, layer, scaling, dropout)


def attend_cached(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: LayerPlan,
    scaling: float,
    dropout: float,
    key_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend to the keys and values that the cache's `update` returned."""
    arguments: dict[str, Any] = {LAYER_PLAN: layer, "scaling": scaling, "dropout": dropout, "key_bias": key_bias}
    return attention_sinks_attention(module, query, key, value, None, **arguments)


# ---- one token


def _attend_token(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    plan: TokenPlan,
    reach: Reach,
    implementation: str,
    arguments: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend by the user's implementation, with what else it takes in `arguments`.

    Any implementation will do: the query sees all keys that the mask leaves, and only biases depend on their order.
    """
    if mask is not None and "flash" in implementation:
        mask = mask[:, 0, 0]
    elif mask is None and implementation == "eager":  # some implementations add it without asking whether there is one
        mask = query.new_zeros((1, 1, 1, plan.used))
    elif mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    attend_by = _implementation(module, implementation)
    output, weights = attend_by(module, query, key, value, mask, **arguments)
    if weights is not None:
        order = slot_order(plan, reach)[:, None, None]
        weights = weights.gather(-1, order.expand(*weights.shape[:3], -1))
    return output, weights


def _token_mask(
    visible: torch.Tensor | None, bias: torch.Tensor | None, query: torch.Tensor, key_bias: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what is added to the scores [R, heads, 1, used]; without a bias, `visible` as it is."""
    if key_bias is not None:
        bias = key_bias.repeat_interleave(query.shape[1] // key_bias.shape[1], dim=1)[:, :, None]
    if bias is None:
        return visible
    bias = bias.to(query.dtype)
    return bias if visible is None else torch.where(visible, bias, torch.finfo(query.dtype).min)


def _sdpa_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attend by SDPA. The query heads that share a key head are taken as columns of one query: no key is repeated."""
    batch, heads, _, width = query.shape
    groups = query.reshape(batch, key.shape[1], -1, width)
    if mask is not None and mask.shape[1] > 1:
        mask = mask.reshape(mask.shape[0], key.shape[1], -1, mask.shape[-1])
    output = nn.functional.scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])


def _implementation(module: nn.Module, name: str) -> Callable[..., Any]:
    """Return the attention function that the user chose. An eager one stands beside the module's class, or here."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", plain_attention)
    return AttentionInterface().get_interface(name, eager)


def plain_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(query key^T scaling + mask) value, and the weights."""
    query = by_key_head(query, key.shape[1])
    scores = (query @ key.transpose(2, 3)[:, :, None]).flatten(1, 2) * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, dropout)
    output = by_key_head(weights, key.shape[1]) @ value[:, :, None]
    return output.flatten(1, 2).transpose(1, 2).contiguous(), weights
