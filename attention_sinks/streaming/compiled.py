"""A step inside a graph of `torch.compile`. One graph serves the whole life of a stream.

An eager step counts in Python numbers; here the counters are tensors (`DeviceCounters`). Layers and attention are the
same. There is no rebase: angles are computed in float64, in which positions of any size are exact enough.
"""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.modules import tokens_of
from ..architecture.setup import Setup, setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.device_counters import DeviceCounters
from ..plan.reach import Reach
from ..plan.token import TokenPlan, visible_slots
from ..versions import CACHE
from .inputs import ready_mask


def is_exporting() -> bool:
    """Return whether `torch.export` is tracing; PyTorch tells since 2.7."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def is_compiled_step(model: Any, given: dict[str, Any]) -> bool:
    """Return whether a call that is traced, with the arguments `given`, is a step that one graph can serve."""
    cache, mask, tokens = given.get(CACHE), given.get("attention_mask"), tokens_of(given)
    if not isinstance(cache, AttentionSinkKVCache) or not cache.can_step_in_graph or tokens is None:
        return False
    setup, counters = setup_of(model), cache.streams.device
    assert counters is not None  # a cache that can step in a graph has had a call
    batch_size = counters.seen.shape[0]
    return (
        cache.was_made_for(setup.model)
        and all(source.has_its_dtype() for source in setup.sources)
        and setup.known_table(cache.settings) is not None  # to make one takes a lock, which would break a graph
        and tuple(tokens.shape[:2]) == (batch_size, 1)
        and tokens.device.type != "mps"
        and (mask is None or (mask.dim() == 2 and mask.shape[0] == batch_size))
        and given.get("position_ids") is None
        and not given.get("output_attentions", getattr(model.config, "output_attentions", False))
        and not torch.is_grad_enabled()
    )


def plan_compiled_step(
    setup: Setup, cache: AttentionSinkKVCache, given: dict[str, Any]
) -> tuple[list[TokenPlan], dict[str, Any], torch.Tensor | None]:
    """Return the plans of a step, the arguments that are left, and which rows [batch] bool are active (None: all).

    A compiled step reads only the mask's last column.
    """
    counters, mask = cache.streams.device, given.pop("attention_mask", None)
    assert counters is not None  # as in is_compiled_step
    active = None if mask is None else mask[:, -1] != 0
    plans = [_plan_token(counters, active, reach) for reach in setup.layer_table(cache.settings).distinct_reaches]
    return plans, {**given, "attention_mask": ready_mask(setup, counters.seen.device)}, active


def _plan_token(counters: DeviceCounters, active: torch.Tensor | None, reach: Reach) -> TokenPlan:
    """Return what `plan.token.plan_token` returns, but over the whole buffer from the first step on."""
    t, origin = counters.seen[:, None].clone(), counters.origin[:, None]
    cached = t.clamp(max=reach.cached_size)
    return TokenPlan(
        position=t,
        slot=reach.slot_of(t[:, 0]),
        used=reach.visible_size,
        model_position=t - origin,
        delta=t - origin - cached if reach.sink_size else None,
        cache_position=cached,
        active=active,
        visible=visible_slots(t, reach.visible_size, reach)[:, None, None],
        may_be_sink=True,
    )
