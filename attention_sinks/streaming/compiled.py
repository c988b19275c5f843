"""A step of one token per row inside a graph of `torch.compile`: one graph serves the whole life of a stream.

An eager step counts in Python numbers; here the counters are tensors (`DeviceCounters`). Layers and attention are the
same.
Nothing is rebased: angles are computed in float64, in which positions of any size are exact enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..architecture.setup import named_arguments, setup_of, tokens_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.device_counters import DeviceCounters
from ..plan.call import CallPlan
from ..plan.reach import Reach, TokenPlan
from ..plan.token import visible_slots
from ..versions import CACHE
from .inputs import ready_mask
from .multimodal import text_arguments


def is_compiled_step(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call that is being traced is a step that one graph can serve."""
    given = text_arguments(named_arguments(type(model), args, kwargs))
    cache, mask, tokens = given.get(CACHE), given.get("attention_mask"), tokens_of(given)
    if not isinstance(cache, AttentionSinkKVCache) or not cache.can_step_in_graph or tokens is None:
        return False
    rows = cache.streams.static.seen.shape[0]
    return (
        cache.serves(model)
        and tuple(tokens.shape[:2]) == (rows, 1)
        and tokens.device.type != "mps"
        and (mask is None or (mask.dim() == 2 and mask.shape[0] == rows))
        and given.get("position_ids") is None
        and not given.get("output_attentions", getattr(model.config, "output_attentions", False))
        and not torch.is_grad_enabled()
    )


def compiled_step(
    model: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[CallPlan, AttentionSinkKVCache, dict[str, Any]]:
    """Turn the sinks and move the counters on; returns the call, its cache and the arguments that are left.

    Of a mask only the new column is looked at.
    """
    setup = setup_of(model)
    given = text_arguments(named_arguments(type(model), args, kwargs))
    cache, mask = given.pop(CACHE), given.pop("attention_mask", None)
    rows, layout = cache.streams.static, setup.layer_table(cache.settings)
    active = None if mask is None else mask[:, -1] != 0
    steps = tuple(_plan_static_token(rows, active, reach) for reach in layout.distinct_reaches)
    chosen = model.config._attn_implementation  # kernels for ragged rows do not fit a graph
    call = CallPlan(steps, layout, chosen if chosen in ("eager", "sdpa") else "eager")
    given["attention_mask"] = ready_mask(setup, rows.seen.device)
    cache.rotate_sinks(call)
    rows.step(active)
    cache.streams.ahead = True
    return call, cache, given


def _plan_static_token(rows: DeviceCounters, active: torch.Tensor | None, reach: Reach) -> TokenPlan:
    """As `plan_token`, over the whole buffer from the first step on."""
    t, base = rows.seen[:, None].clone(), rows.base[:, None]
    cached = t.clamp(max=reach.cached_size)
    return TokenPlan(
        position=t,
        slot=reach.slot_of(t[:, 0]),
        used=reach.visible_size,
        model_position=t - base,
        delta=t - base - cached if reach.sink_size else None,
        cache_position=cached,
        active=active,
        visible=visible_slots(t, reach.visible_size, reach)[:, None, None],
        may_be_sink=True,
    )
