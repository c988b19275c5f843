"""The attention of an injected model: one token over the buffers in place, or blocks of queries over bands of keys."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from ..cache.columns import take
from ..plan.block import BlockPlan, QueryBlock
from ..plan.layer import LayerPlan
from ..plan.token import TokenPlan, slot_order
from .bound_cache import BoundCache

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
    """Attention of one layer for one call, with the signature of Transformers' `AttentionInterface`.

    Parameters
    ----------
    query : torch.Tensor
        [batch, num_attention_heads, n, head_dim], rotated at model positions.
    key, value : torch.Tensor
        [batch, num_key_value_heads, slots or layout, head_dim], as `SinkLayer.update` returned them.
    attention_mask : torch.Tensor or None
        Ignored: who sees whom is in the call's plan.
    softcap : float, optional
        Scores are bent to at most this, as in Gemma 2.
    s_aux : torch.Tensor, optional
        [num_attention_heads], scores of a learned sink that has no value, as in gpt-oss.
    key_bias : torch.Tensor, optional
        [batch, num_key_value_heads, slots or layout], added to every score with a key, as in Doge.

    Returns
    -------
    tuple
        Output [batch, n, num_attention_heads, head_dim] and, with the eager implementation, the weights
        [batch, num_attention_heads, n, columns], columns in the order of the stream.
    """
    layer: LayerPlan = kwargs.pop(LAYER_PLAN)
    if isinstance(layer.plan, BlockPlan):
        return _attend_block(query, key, value, layer, scaling, dropout, softcap, s_aux, key_bias)
    mask = layer.plan.visible
    if layer.token_bias is not None or key_bias is not None:
        mask = _token_mask(layer, query, key_bias)
    if softcap is not None:
        kwargs["softcap"] = softcap
    if s_aux is not None:
        kwargs["s_aux"] = s_aux
    if layer.implementation == "sdpa" and not dropout and softcap is None and s_aux is None:
        return _sdpa_token(query, key, value, mask, scaling), None
    return _attend_token(module, query, key, value, mask, layer, scaling, dropout, **kwargs)


AttentionInterface.register(ATTENTION_NAME, attention_sinks_attention)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: BoundCache,
    layer: LayerPlan,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cache and attention for architectures that do not use the interface; states are [batch, heads, n, head_dim]."""
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
    """Attention alone, over the keys and values that the cache's `update` returned."""
    arguments = {LAYER_PLAN: layer, "scaling": scaling, "dropout": dropout, "key_bias": key_bias}
    return attention_sinks_attention(module, query, key, value, None, **arguments)


# ---- one token


def _attend_token(module, query, key, value, mask, layer, scaling, dropout, **kwargs):
    """All keys of the buffer are visible and their order matters to biases alone: any implementation will do."""
    plan: TokenPlan = layer.plan
    if mask is not None and "flash" in layer.implementation:
        mask = plan.visible[:, 0, 0]
    elif mask is None and layer.implementation == "eager":  # some add it without asking whether there is one
        mask = query.new_zeros((1, 1, 1, plan.used))
    elif mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    attend_by = _implementation(module, layer.implementation)
    output, weights = attend_by(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    if weights is not None:
        order = slot_order(plan, layer.reach)[:, None, None]
        weights = weights.gather(-1, order.expand(*weights.shape[:3], -1))
    return output, weights


def _token_mask(layer: LayerPlan, query: torch.Tensor, key_bias: torch.Tensor | None) -> torch.Tensor | None:
    """[R, 1 or heads, 1, used]: which slots are in use, bool, or with a bias what is added to the scores."""
    visible, bias = layer.plan.visible, layer.token_bias
    if key_bias is not None:
        bias = key_bias.repeat_interleave(query.shape[1] // key_bias.shape[1], dim=1)[:, :, None]
    if bias is None:
        return visible
    bias = bias.to(query.dtype)
    return bias if visible is None else torch.where(visible, bias, torch.finfo(query.dtype).min)


def _sdpa_token(query, key, value, mask, scaling):
    """The query heads that share a key head are taken as rows of one query: no key is repeated."""
    batch, heads, _, width = query.shape
    groups = query.reshape(batch, key.shape[1], -1, width)
    if mask is not None and mask.shape[1] > 1:
        mask = mask.reshape(mask.shape[0], key.shape[1], -1, mask.shape[-1])
    output = nn.functional.scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(batch, 1, heads, value.shape[-1])


def _implementation(module: nn.Module, name: str):
    """The attention function the user chose; eager ones live beside the module's class, where it has one."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", plain_attention)
    return AttentionInterface().get_interface(name, eager)


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(query key^T scaling + mask) value, spelled out."""
    query = _by_key_head(query, key.shape[1])
    scores = (query @ key.transpose(2, 3)[:, :, None]).flatten(1, 2) * scaling
    scores = scores if attention_mask is None else scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = nn.functional.dropout(weights, dropout)
    output = _by_key_head(weights, key.shape[1]) @ value[:, :, None]
    return output.flatten(1, 2).transpose(1, 2).contiguous(), weights


# ---- a block of queries


def _attend_block(query, key, value, layer, scaling, dropout, softcap, s_aux, key_bias):
    """One softmax over the sinks, scored by queries rotated towards them, and the band of recent keys.

    scores = [ R(-delta_t) q_t . sinks | q_t . window and new keys ], exact for every query of the call.
    """
    plan, dtype = layer.plan, query.dtype
    if query.device.type == "cpu":  # where products of small matrices in half precision are slow
        query, key, value = (states.to(torch.promote_types(dtype, torch.float32)) for states in (query, key, value))
    query = _by_key_head(query, key.shape[1])
    rotated = query
    if layer.sink_rotation is not None:
        rotated = layer.rotate(query.flatten(1, 2), layer.sink_rotation).view_as(query)
    sink_key, sink_value = take(key, plan.sinks), take(value, plan.sinks)
    outputs, weights = [], [] if layer.implementation == "eager" else None
    for block in plan.blocks:
        sink_bias, band_bias = _block_biases(layer, block, query.shape[1], key_bias)
        to_sinks = _scores(rotated[..., block.queries, :], sink_key, sink_bias, scaling, softcap)
        to_band = _scores(query[..., block.queries, :], key[:, :, block.keys], band_bias, scaling, softcap)
        scores = [to_sinks, to_band, *_learned(s_aux, to_band)]
        probabilities = torch.cat(scores, dim=-1).softmax(dim=-1).to(query.dtype)
        probabilities = nn.functional.dropout(probabilities, dropout) if dropout else probabilities
        on_sinks, on_band = probabilities.split([part.shape[-1] for part in scores], dim=-1)[:2]
        outputs.append(_mix(on_sinks, sink_value) + _mix(on_band, value[:, :, block.keys]))
        if weights is not None:
            weights.append(_in_stream_order(on_sinks, on_band, block.keys, key.shape[2], plan))
    output = torch.cat(outputs, dim=3).flatten(1, 2).transpose(1, 2).contiguous()
    return output.to(dtype), torch.cat(weights, dim=2).to(dtype) if weights else None


def _block_biases(layer: LayerPlan, block: QueryBlock, key_heads: int, key_bias) -> tuple[torch.Tensor, torch.Tensor]:
    """What is added to the scores with the sinks and with the band, [R, 1 or key heads, 1 or groups, queries, keys]."""
    if key_bias is not None:
        key_bias = key_bias.float()[:, :, None, None]
        sinks = layer.plan.sinks[:, None, None, None].expand(*key_bias.shape[:-1], -1)
        on_sinks = key_bias.gather(-1, sinks)
        return block.sink_bias + on_sinks, block.bias + key_bias[..., block.keys]
    if layer.alibi is None:
        return block.sink_bias, block.bias
    plan: BlockPlan = layer.plan
    place = plan.cache_position[:, block.queries]
    evicted = plan.query_position[:, block.queries] - place
    sinks = torch.arange(block.sink_bias.shape[-1], dtype=torch.long, device=place.device).expand(*place.shape, -1)
    band = plan.tokens[:, None, block.keys] - evicted[..., None]
    on_sinks, on_band = (layer.alibi.bias(place, keys).unflatten(1, (key_heads, -1)) for keys in (sinks, band))
    return block.sink_bias + on_sinks, block.bias + on_band


def _by_key_head(query: torch.Tensor, key_heads: int) -> torch.Tensor:
    """[batch, heads, n, d] -> [batch, key heads, heads per key head, n, d]."""
    return query.unflatten(1, (key_heads, -1))


def _scores(query, key, bias, scaling, softcap):
    """Masked scores in float32 of `query` [batch, key heads, groups, n, d] with `key` [batch, key heads, m, d]."""
    batch, heads, groups, columns, width = query.shape
    scores = (query * scaling).reshape(batch, heads, groups * columns, width) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, groups, columns, -1).float()
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    return scores.add_(bias)


def _learned(s_aux: torch.Tensor | None, scores: torch.Tensor) -> list[torch.Tensor]:
    """The scores of a learned sink, one for every query, where there is one."""
    if s_aux is None:
        return []
    heads, groups, columns = scores.shape[1:4]
    return [s_aux.float().view(1, heads, groups, 1, 1).expand(scores.shape[0], -1, -1, columns, 1)]


def _mix(weights, value):
    """Values [batch, key heads, m, d] mixed by `weights` [batch, key heads, groups, n, m]."""
    batch, heads, groups, columns, width = weights.shape
    mixed = weights.reshape(batch, heads, groups * columns, width) @ value
    return mixed.view(batch, heads, groups, columns, -1)


def _in_stream_order(on_sinks, on_band, keys: slice, layout: int, plan: BlockPlan) -> torch.Tensor:
    """Weights [batch, heads, n, columns]: sinks, window from old to new, new columns; columns never filled left out."""
    weights = on_band.new_zeros(*on_band.shape[:-1], layout)
    weights[..., keys] = on_band
    where = plan.sinks[:, None, None, None].expand(on_sinks.shape)
    weights = weights.scatter_add(-1, where, on_sinks)
    return weights.index_select(-1, plan.filled).flatten(1, 2)
