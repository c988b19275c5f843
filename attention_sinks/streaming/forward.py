"""What runs in place of the forwards of an injected model: base model, rotary module, attention modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..architecture.setup import Setup, named_arguments, parameter_names, setup_of, tokens_of
from ..plan.block import plan_block
from ..plan.call import LAYER_PLAN, CallPlan
from ..plan.counters import Counters
from ..plan.reach import Plan, Reach
from ..plan.token import plan_token
from ..versions import CACHE, with_both_names, with_cache_named
from .bound_cache import CallView, LayerView, name_of_view
from .compiled import compiled_step, is_compiled_step
from .inputs import Inputs, read_inputs

CHUNK_SIZE = 1024
"""Longer calls are cut into pieces of this many columns, so that a call of any length needs bounded memory."""

QUERY_BLOCK = {"cpu": 64}
"""Queries scored at once, by device type: on a CPU what fits a core's own memory is fastest; elsewhere 256."""


def streaming_forward(model: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """The base model's forward. Under `torch.compile` a step of one token per row is part of the graph; other calls
    break it and run as they do without."""
    if not torch.compiler.is_compiling():
        return _stream(model, args, kwargs, previous)
    if is_compiled_step(model, args, kwargs):
        return _step_in_graph(model, args, kwargs, previous)
    return _stream_outside_graph(model, args, kwargs, previous)


def _stream(model: nn.Module, args: tuple, kwargs: dict[str, Any], previous: Callable | None):
    """Check the call, cut it, run the pieces, then advance the streams."""
    inputs = read_inputs(model, args, kwargs)
    rows, whole = inputs.rows, None
    if inputs.cache is not None:
        inputs.cache.begin()
    try:
        for piece in inputs.pieces(CHUNK_SIZE):
            rows, output = _run(inputs, previous, piece, rows)
            whole = _joined(whole, output, piece, inputs.columns)
        if inputs.keep_cache:
            inputs.cache.commit(rows, inputs.columns, inputs.tokens, inputs.device)
    except BaseException:
        if inputs.cache is not None:
            inputs.cache.discard(inputs.columns)
        raise
    output = inputs.restore_order(whole)
    output[CACHE] = inputs.cache if inputs.keep_cache else None
    return with_both_names(output) if inputs.return_dict else output.to_tuple()


_stream_outside_graph = torch.compiler.disable(_stream)


def _step_in_graph(model: nn.Module, args: tuple, kwargs: dict[str, Any], previous: Callable | None):
    """One token per row, with counters that are tensors."""
    call, cache, given = compiled_step(model, args, kwargs)
    return_dict = given.pop("return_dict", getattr(model.config, "return_dict", True))
    output = _call_previous(model, previous, **_arguments(setup_of(model), call, cache, given))
    output[CACHE] = cache
    return with_both_names(output) if return_dict is not False else output.to_tuple()


def _run(
    inputs: Inputs, previous: Callable | None, piece: slice, rows: Counters
) -> tuple[Counters, BaseModelOutputWithPast]:
    """One piece of a call: work out its step and run the layers; returns where the rows stand after it."""
    setup = inputs.setup
    layout = setup.layer_table(inputs.settings)
    counts, columns = inputs.counts(piece), piece.stop - piece.start
    has_sinks = min(rows.seen) >= max(1, layout.with_sinks.sink_size)
    by_token = inputs.columns == 1 and has_sinks and not inputs.with_gradients
    shift = rows.shift_for(max(counts), layout.room)
    if inputs.cache is not None and any(shift):
        rows = rows.rebase(shift)
        inputs.cache.rebase(shift, layout.positions)
        if by_token:
            inputs.cache.commit(rows, 0, None, inputs.device)
    steps = tuple(_step(rows, counts, columns, reach, by_token, inputs.device) for reach in layout.distinct_reaches)
    call = CallPlan(steps, layout, setup.model.config._attn_implementation)
    if by_token:
        inputs.cache.rotate_sinks(call)
    arguments = _arguments(setup, call, inputs.cache, inputs.arguments(piece))
    return rows.advance(counts), _call_previous(setup.model, previous, **arguments)


def _arguments(setup: Setup, call: CallPlan, cache, given: dict[str, Any]) -> dict[str, Any]:
    """`given` and what else the base model's own forward is to be handed for `call`."""
    arguments = {**given, "position_ids": call.steps[0].cache_position.to(tokens_of(given).device), "return_dict": True}
    return {**arguments, CACHE: setup.architecture.view(cache, call)}


def _step(rows: Counters, counts: tuple[int, ...], columns: int, reach: Reach, by_token: bool, device) -> Plan:
    if by_token:
        return plan_token(rows, [bool(count) for count in counts], reach)
    return plan_block(rows, counts, columns, reach, QUERY_BLOCK.get(device.type, 256))


def _joined(whole: BaseModelOutputWithPast | None, part: BaseModelOutputWithPast, piece: slice, columns: int):
    """The output of the columns `piece` written into that of the call, for which the first part makes room."""
    if piece == slice(0, columns):
        return part
    known = {"last_hidden_state", "hidden_states", CACHE}
    if unknown := {name for name, value in part.items() if value is not None} - known:
        raise NotImplementedError(
            f"a call longer than {CHUNK_SIZE} tokens cannot return {', '.join(sorted(unknown))}; make shorter calls."
        )
    new = _hidden_states(part)
    if whole is None:
        whole, (last, *others) = part, [states.new_empty(len(states), columns, states.shape[2]) for states in new]
        whole["last_hidden_state"] = last
        if others:
            whole["hidden_states"] = tuple(others)
    for room, states in zip(_hidden_states(whole), new, strict=True):
        room[:, piece] = states
    return whole


def _hidden_states(output: BaseModelOutputWithPast) -> list[torch.Tensor]:
    return [output.last_hidden_state, *(output.get("hidden_states") or ())]


def named_forward(model: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """The forward of a model around the base model: the cache by either name, in the call and in the output."""
    return with_both_names(_call_previous(model, previous, *args, **with_cache_named(kwargs)))


def rotary_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any) -> None:
    """Nothing: attention takes its cosines and sines from the call, for which positions alone are not enough."""


def attention_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """An attention module's own forward, with the call's positions and the call's view of the cache."""
    name = name_of_view(module, kwargs)
    layer = _layer_view(module, kwargs[name], args, kwargs)
    kwargs[name] = None if layer.cache is None else layer
    if "position_embeddings" in parameter_names(type(module)):
        kwargs["position_embeddings"] = layer.call.position_embeddings
    elif "position_ids" in kwargs:  # attention that makes its cosines and sines itself
        kwargs["position_ids"] = layer.call.step.model_position
    return _call_previous(module, previous, *args, **{**kwargs, LAYER_PLAN: layer.call})


def written_out_forward(
    module: nn.Module, *args: Any, function: Callable, previous: Callable | None = None, **kwargs: Any
):
    """In place of an attention module that does not use the attention interface: `function` of its architecture."""
    kwargs = named_arguments(type(module), args, kwargs)
    layer = _layer_view(module, kwargs[name_of_view(module, kwargs)], (), kwargs)
    return function(module, layer=layer, **kwargs)


def _layer_view(module: nn.Module, view: CallView, args: tuple, kwargs: dict[str, Any]) -> LayerView:
    """The running call and its cache as the layer of `module` sees them."""
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    layer_idx = kwargs.get("layer_idx")  # handed to modules that several layers share
    layer_idx = module.layer_idx if layer_idx is None else layer_idx
    return LayerView(view.cache, view.call.at(layer_idx, hidden_states))


def _call_previous(module: nn.Module, previous: Callable | None, *args: Any, **kwargs: Any):
    """What the module ran before it was patched: its class's forward unless somebody had replaced it."""
    return previous(*args, **kwargs) if previous is not None else type(module).forward(module, *args, **kwargs)
