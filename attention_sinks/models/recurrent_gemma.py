"""RecurrentGemma has local attention and gated linear recurrences, whose states Transformers keeps on their modules.

Here the states are in the cache, as those of their layers, and continue over a call of several tokens. Padding is kept
out of the convolution. The recurrence begins anew at the first token of a row, as in Transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..architecture.layer_kinds import LayerKind
from ..architecture.modules import named_arguments
from ..architecture.spec import Architecture
from ..architecture.streaming_class import OWN_FORWARD
from ..cache.cache import AttentionSinkKVCache
from ..cache.states_layer import StatesLayer
from ..plan.layer import Plan
from ..plan.token import TokenPlan
from ..positions.schemes import Rope
from ..streaming.bound_cache import BoundCache, bound_cache_in
from ..streaming.forward import call_plain
from ..versions import CACHE, with_both_names

RECURRENT = ("linear_attention", "recurrent")
"""The names of recurrent layers in `config.layers_block_type`, today and in older releases."""


class RecurrentGemmaCache(BoundCache):
    """A bound cache that ignores the lengths of its first attention layer, which the model sets on it until 5.23."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("cache", "table", "plans", "implementation", "made", "running"):
            super().__setattr__(name, value)


def _recurrent_block(block: Any, input_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """Run in place of the forward of a recurrent block. Its states come from the cache and go there."""
    _, bound = bound_cache_in(block, kwargs)
    layer = None if bound.cache is None else bound.cache.layers[block.layer_idx]
    before = recurrent = None
    if layer is not None:
        assert isinstance(layer, StatesLayer)  # as `_kinds` says of recurrent layers
        if layer.has_previous_state[0]:
            before, recurrent = layer.conv_states[0], layer.recurrent_states[0]
    position, columns = _stream_position(bound.plans[0], input_states.device), input_states.shape[1]
    inputs = block.linear_x(input_states).masked_fill((position < 0)[..., None], 0.0).transpose(1, 2)
    if before is None:
        before = inputs.new_zeros(*inputs.shape[:2], block.conv1d_width - 1)
    inputs = torch.cat([before, inputs], dim=-1)
    convolved = block.conv_1d(inputs)[..., before.shape[-1] : before.shape[-1] + columns].transpose(1, 2)
    recurrent = None if recurrent is None else recurrent.clone()
    outputs, recurrent = block.rg_lru(convolved, position.clamp(min=0), recurrent)
    if layer is not None:
        layer.update_conv_state(inputs[..., columns:].detach())
        layer.update_recurrent_state(recurrent.detach())
    return block.linear_out(outputs * block.act_fn(block.linear_y(input_states))), None


def _recurrence(
    module: Any, activations: torch.Tensor, position_ids: torch.Tensor, recurrent_states: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the recurrence from `recurrent_states` on a copy of `module`, on which Transformers leaves the new ones."""
    own = copy.copy(module)
    vars(own).pop(OWN_FORWARD, None)  # accelerate's is bound to `module`
    own.recurrent_states = recurrent_states
    outputs = call_plain(own, activations, position_ids)
    assert own.recurrent_states is not None  # the call has left them
    return outputs, own.recurrent_states


def _stream_position(plan: Plan, device: torch.device) -> torch.Tensor:
    """Return how many tokens of its row came before each [R, n]; negative numbers for padding before the first."""
    return (plan.position if isinstance(plan, TokenPlan) else plan.query_position).to(device)


def _head(head: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the head's own forward and put the cache into its output."""
    given = named_arguments(type(head), args, kwargs)
    use_cache = head.config.use_cache if given.get("use_cache") is None else given["use_cache"]
    if use_cache and not head.training and given.get(CACHE) is None:
        given[CACHE] = AttentionSinkKVCache(head)
    output = call_plain(head, **given)
    if isinstance(output, ModelOutput):
        output[CACHE] = given.get(CACHE)
    return with_both_names(output)


def _extra_patches(model: PreTrainedModel, base_model: Any) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    if model is not base_model:
        yield model, {"forward": _head}
    for index, (layer, kind) in enumerate(zip(base_model.layers, _kinds(base_model.config), strict=True)):
        if kind.states:
            yield layer.temporal_block, {"forward": _recurrent_block, "layer_idx": index}
            yield layer.temporal_block.rg_lru, {"forward": _recurrence}


def _kinds(config: PreTrainedConfig) -> tuple[LayerKind, ...]:
    attends, recurs = LayerKind(True, True, config.attention_window_size), LayerKind(False, False, states=1)
    return tuple(recurs if name in RECURRENT else attends for name in config.layers_block_type)


def _rope(config: PreTrainedConfig) -> Rope:
    index = next(index for index, kind in enumerate(_kinds(config)) if kind.attends)
    return Rope(module=f"layers.{index}.temporal_block.rotary_emb")


ARCHITECTURE = Architecture(
    "RecurrentGemmaAttention",
    _rope,
    bound_cache=RecurrentGemmaCache,
    kinds=_kinds,
    accepts_4d_mask=False,
    extra_patches=_extra_patches,
)
