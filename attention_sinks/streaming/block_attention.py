"""How a block attends: parts of its queries over bands of keys, exact for every query of the call."""

from __future__ import annotations

import torch
from torch import nn

from ..cache.columns import take
from ..plan.block import BlockPlan, QueryBlock
from ..plan.layer import LayerPlan


def attend_block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: BlockPlan,
    layer: LayerPlan,
    scaling: float,
    dropout: float,
    softcap: float | None,
    s_aux: torch.Tensor | None,
    key_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Take one softmax over the sinks, scored by queries that are rotated towards them, and the band of recent keys.

    scores = [ R(-delta_t) q_t . sinks | q_t . window and new keys ]

    Arguments and result are those of `attention.attention_sinks_attention`.
    """
    dtype = query.dtype
    if query.device.type == "cpu":  # where products of small matrices in half precision are slow
        query, key, value = (states.to(torch.promote_types(dtype, torch.float32)) for states in (query, key, value))
    query = by_key_head(query, key.shape[1])
    rotated = query
    if layer.sink_rotation is not None:
        rotated = layer.rotate(query.flatten(1, 2), layer.sink_rotation).view_as(query)
    sink_key, sink_value = take(key, plan.sinks), take(value, plan.sinks)
    outputs: list[torch.Tensor] = []
    parts: list[torch.Tensor] = []
    for block in plan.query_blocks:
        sink_bias, band_bias = _biases(plan, layer, block, query.shape[1], key_bias)
        to_sinks = _scores(rotated[..., block.queries, :], sink_key, sink_bias, scaling, softcap)
        to_band = _scores(query[..., block.queries, :], key[:, :, block.keys], band_bias, scaling, softcap)
        scores = [to_sinks, to_band, *_learned(s_aux, to_band)]
        probabilities = torch.cat(scores, dim=-1).softmax(dim=-1).to(query.dtype)
        probabilities = nn.functional.dropout(probabilities, dropout) if dropout else probabilities
        on_sinks, on_band = probabilities.split([part.shape[-1] for part in scores], dim=-1)[:2]
        outputs.append(_mix(on_sinks, sink_value) + _mix(on_band, value[:, :, block.keys]))
        if layer.implementation == "eager":
            parts.append(_in_stream_order(on_sinks, on_band, block.keys, key.shape[2], plan))
    output, weights = torch.cat(outputs, dim=3), torch.cat(parts, dim=2).to(dtype) if parts else None
    if weights is not None and weights.requires_grad:  # such that gradients reach the weights that are returned
        output = _mix(by_key_head(weights.to(value.dtype), key.shape[1]), value.index_select(2, plan.filled))
    return output.flatten(1, 2).transpose(1, 2).contiguous().to(dtype), weights


def _biases(
    plan: BlockPlan, layer: LayerPlan, block: QueryBlock, key_heads: int, key_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is added to the scores with the sinks and with the band.

    Both are [R, 1 or key heads, 1 or groups, queries, keys].
    """
    if key_bias is not None:
        key_bias = key_bias.float()[:, :, None, None]
        sinks = plan.sinks[:, None, None, None].expand(*key_bias.shape[:-1], -1)
        return block.sink_bias + key_bias.gather(-1, sinks), block.bias + key_bias[..., block.keys]
    if layer.alibi is None:
        return block.sink_bias, block.bias
    place = plan.cache_position[:, block.queries]
    evicted = plan.query_position[:, block.queries] - place
    sinks = torch.arange(block.sink_bias.shape[-1], dtype=torch.long, device=place.device).expand(*place.shape, -1)
    band = plan.tokens[:, None, block.keys] - evicted[..., None]
    on_sinks, on_band = (layer.alibi.bias(place, keys).unflatten(1, (key_heads, -1)) for keys in (sinks, band))
    return block.sink_bias + on_sinks, block.bias + on_band


def by_key_head(states: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Return `states` [batch, heads, …] as [batch, key heads, heads per key head, …]."""
    grouped: torch.Tensor = states.unflatten(1, (key_heads, -1))
    return grouped


def _scores(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """Return the scores of `query` [batch, key heads, groups, n, d] with `key` [batch, key heads, m, d].

    They are in float32, or wider where these are.
    """
    batch, heads, groups, columns, width = query.shape
    scores = (query * scaling).reshape(batch, heads, groups * columns, width) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, groups, columns, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    return scores.add_(bias)


def _learned(s_aux: torch.Tensor | None, scores: torch.Tensor) -> list[torch.Tensor]:
    """Return the scores of a learned sink, one for every query, where the architecture has one."""
    if s_aux is None:
        return []
    heads, groups, columns = scores.shape[1:4]
    return [s_aux.float().view(1, heads, groups, 1, 1).expand(scores.shape[0], -1, -1, columns, 1)]


def _mix(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the values [batch, key heads, m, d] mixed by `weights` [batch, key heads, groups, n, m]."""
    batch, heads, groups, columns, width = weights.shape
    mixed = weights.reshape(batch, heads, groups * columns, width) @ value
    return mixed.view(batch, heads, groups, columns, -1)


def _in_stream_order(
    on_sinks: torch.Tensor, on_band: torch.Tensor, keys: slice, size: int, plan: BlockPlan
) -> torch.Tensor:
    """Return weights [batch, heads, n, keys] for all keys of the layout that any row has, which has `size` places.

    The keys are in the order of the stream: sinks, window from old to new, new columns.
    """
    weights = on_band.new_zeros(*on_band.shape[:-1], size)
    weights[..., keys] = on_band
    where = plan.sinks[:, None, None, None].expand(on_sinks.shape)
    weights = weights.scatter_add(-1, where, on_sinks)
    return weights.index_select(-1, plan.filled).flatten(1, 2)
