"""These functions run in place of the forwards of an injected model: base model, rotary module, attention modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..architecture.calls import Call
from ..architecture.modules import named_arguments, parameter_names
from ..architecture.setup import MARK, Setup, setup_of
from ..architecture.streaming_class import OWN_FORWARD
from ..cache.cache import AttentionSinkKVCache
from ..plan.block import plan_block
from ..plan.counters import Counters
from ..plan.layer import Plan
from ..plan.table import LayerTable
from ..plan.token import plan_token
from ..versions import BOTH_NAMES_BY_ITSELF, CACHE, OTHER_CACHE_NAME, with_both_names, with_cache_named
from .attention import LAYER_PLAN
from .bound_cache import BoundCache, bound_cache_in
from .compiled import is_compiled_step, is_exporting, plan_compiled_step
from .inputs import Inputs, read_arguments, read_inputs
from .multimodal import TEXT_ARGUMENTS, placeholder_positions, refuse_media
from .outputs import joined

CHUNK_SIZE = 1024
"""Longer calls are cut into chunks of this many columns, so that a call of any length needs bounded memory."""

QUERY_BLOCK = {"cpu": 64}
"""How many queries are scored at once, by device type. On a CPU it is fastest when they fit a core's own memory;
elsewhere it is 256."""


# ---- the base model


def streaming_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a call of the base model.

    Under `torch.compile` a step becomes part of the graph. Other calls break the graph and run as they do without it.

    Raises
    ------
    NotImplementedError
        Under `torch.export`.
    """
    if MARK not in model.__dict__:  # as `_lost_its_sinks`
        return call_plain(model, *args, **kwargs)
    given = read_arguments(model, args, kwargs)
    if not torch.compiler.is_compiling():
        return _stream(model, given)
    if is_exporting():
        raise NotImplementedError(
            f"{type(model).__name__} has attention sinks and cannot be exported: what a call does follows from where "
            "its streams stand, which an exported program cannot ask; call remove_attention_sinks(model) and export "
            "the plain model, or use torch.compile instead."
        )
    if is_compiled_step(model, given):
        return _step_in_graph(model, given)
    return _stream_outside_graph(model, given)


def _stream(model: nn.Module, given: dict[str, Any]) -> Any:
    """Run a call, such that the model is known to be in use."""
    calls, call = model.__dict__[MARK].calls, Call()
    try:
        calls.running.add(call)
        if calls.changing:
            calls.begin(call)
        if MARK not in model.__dict__:  # attention sinks have gone out since the call began
            return call_plain(model, **given)
        return _run_call(model, given)
    finally:
        calls.running.discard(call)


def _run_call(model: nn.Module, given: dict[str, Any]) -> Any:
    """Check the call, run it, then advance the streams."""
    setup = model.__dict__[MARK].setup
    inputs = read_inputs(setup if setup.model is model else setup_of(model), given)
    cache, call = inputs.cache, object()
    try:
        if cache is not None:
            cache.layer_stack.begin(call, inputs.columns)
        output = _run_step(inputs) if inputs.is_step else _run_chunks(inputs)
    finally:
        if cache is not None:
            cache.layer_stack.end(call)
    output[CACHE] = cache if inputs.keep_cache else None
    return _returned(output, inputs.return_dict)


_stream_outside_graph: Any = torch.compiler.disable(_stream)


def _returned(output: BaseModelOutputWithPast, return_dict: bool) -> Any:
    """Return `output` in the form that the caller asked for."""
    if not return_dict:
        return output.to_tuple()
    return output if BOTH_NAMES_BY_ITSELF else with_both_names(output)


def _run_step(inputs: Inputs) -> BaseModelOutputWithPast:
    """Feed one token per row: rotate the sinks, run the layers, which write in place, and count."""
    cache, table, counters = inputs.cache, inputs.table, inputs.counters
    assert cache is not None  # as `is_step` has checked
    if max(counters.seen) - min(counters.origin) >= 2 * (table.room + 1):
        moved = _rebased(cache, counters, 1, table)
        if moved is not counters:  # rows of different origins may all have room
            counters = moved
            cache.layer_stack.commit_rebase(counters)
    active = None if inputs.real is None else inputs.real[:, 0]
    plans = [plan_token(counters, active, reach) for reach in table.distinct_reaches]
    bound = _bound(inputs.setup, cache, table, plans)
    cache.layer_stack.rotate_sinks(bound.plan_of)
    output = _call_base(inputs.setup.model, bound, inputs.arguments(slice(0, 1)))
    cache.layer_stack.commit_step(inputs.real)
    return output


def _run_chunks(inputs: Inputs) -> BaseModelOutputWithPast:
    """Feed several tokens per row, or the first ones, in chunks. The history of the cache moves after the last one."""
    cache, table, counters = inputs.cache, inputs.table, inputs.counters
    whole: BaseModelOutputWithPast | None = None
    block_size = QUERY_BLOCK.get(inputs.device.type, 256)
    for chunk in inputs.chunks(CHUNK_SIZE):
        counts, columns = inputs.counts(chunk), chunk.stop - chunk.start
        counters = _rebased(cache, counters, max(counts), table)
        plans = [plan_block(counters, counts, columns, reach, block_size) for reach in table.distinct_reaches]
        bound = _bound(inputs.setup, cache, table, plans)
        output = _call_base(inputs.setup.model, bound, inputs.arguments(chunk))
        whole = joined(whole, output, chunk, inputs.columns)
        counters = counters.advance(counts)
    if cache is not None and inputs.keep_cache:
        cache.layer_stack.commit(counters, inputs.columns, inputs.tokens, inputs.device)
    assert whole is not None  # a call has at least one chunk
    return inputs.restore_order(whole)


def _rebased(cache: AttentionSinkKVCache | None, counters: Counters, new_tokens: int, table: LayerTable) -> Counters:
    """Return `counters` with origins moved on where `new_tokens` would lead too far from them, and rotate keys back."""
    if cache is None or not cache.layer_stack.rebases:
        return counters
    shift = counters.shift_for(new_tokens, table.room)
    if not any(shift):
        return counters
    cache.layer_stack.rebase(shift, table.positions)
    return counters.rebase(shift)


def _step_in_graph(model: Any, given: dict[str, Any]) -> Any:
    """Feed one token per row, with counters that are tensors."""
    setup, cache = setup_of(model), given.pop(CACHE)
    return_dict = given.pop("return_dict", getattr(model.config, "return_dict", True)) is not False
    plans, given, active = plan_compiled_step(setup, cache, given)
    chosen = model.config._attn_implementation  # kernels for ragged rows do not fit a graph
    table = setup.layer_table(cache.settings)
    bound = _bound(setup, cache, table, plans, chosen if chosen in ("eager", "sdpa") else "eager")
    cache.layer_stack.rotate_sinks(bound.plan_of)
    cache.streams.device.step(active)
    cache.streams.ahead = True
    output = _call_base(model, bound, given)
    output[CACHE] = cache
    return _returned(output, return_dict)


def _bound(
    setup: Setup,
    cache: AttentionSinkKVCache | None,
    table: LayerTable,
    plans: Sequence[Plan],
    implementation: str | None = None,
) -> BoundCache:
    """Return what stands in the place of `cache`. The default of `implementation` is what the user chose."""
    implementation = setup.model.config._attn_implementation if implementation is None else implementation
    assert implementation is not None  # Transformers chooses one when it makes a model
    make: Callable[..., BoundCache] = setup.architecture.bound_cache or BoundCache
    return make(cache, table, plans, implementation)


def _call_base(model: nn.Module, bound: BoundCache, arguments: dict[str, Any]) -> BaseModelOutputWithPast:
    """Run the base model's own forward over `arguments`, with the bound cache in the cache's place."""
    ids = arguments.get("input_ids")
    device = (arguments["inputs_embeds"] if ids is None else ids).device
    arguments["position_ids"] = bound.plans[0].cache_position.to(device)
    arguments["return_dict"] = True
    arguments[CACHE] = bound
    output: BaseModelOutputWithPast = call_plain(model, **arguments)
    return output


# ---- the models around the base model, and its modules


def call_plain(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run what `module` would run without attention sinks."""
    own = module.__dict__.get(OWN_FORWARD)
    if own is not None:
        return own(*args, **kwargs)
    return getattr(type(module), "_plain_class", type(module)).forward(module, *args, **kwargs)


def _lost_its_sinks(module: nn.Module) -> bool:
    """Return whether sinks were removed while somebody kept a forward of ours: in a wrapper, compiled or not."""
    return not hasattr(type(module), "_plain_class")


def wrapper_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a multimodal model around the decoder, such that the caller's mask and positions get through.

    They travel as a dict in the place of the mask, which the model takes for masks that are ready. Positions that the
    model made itself would follow from the length of the cache, or from its last call, so it gets placeholders.
    """
    if _lost_its_sinks(module):
        return call_plain(module, *args, **kwargs)
    given = named_arguments(type(module), args, kwargs)
    refuse_media(module, given)
    handed = {name: given.get(name) for name in ("attention_mask", "position_ids")}
    given["attention_mask"] = {TEXT_ARGUMENTS: handed}
    if "position_ids" in parameter_names(type(module)):
        given["position_ids"] = placeholder_positions(given)
    return with_both_names(call_plain(module, **given))


def named_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of a model around the base model, with the cache by either name in arguments and output."""
    kwargs = with_cache_named(kwargs) if OTHER_CACHE_NAME in kwargs else kwargs
    output = call_plain(model, *args, **kwargs)
    return output if BOTH_NAMES_BY_ITSELF else with_both_names(output)


def rotary_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Do nothing. Attention takes cosines and sines from its plan, since they do not follow from positions alone."""
    return call_plain(module, *args, **kwargs) if _lost_its_sinks(module) else None


def attention_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an attention module's own forward with the plan of its layer."""
    bound = kwargs.get(CACHE)
    name = CACHE
    if not isinstance(bound, BoundCache):
        if _lost_its_sinks(module):
            return call_plain(module, *args, **kwargs)
        name, bound = bound_cache_in(module, kwargs)
    layer_idx = kwargs.get("layer_idx")  # handed to modules that several layers share
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    layer_idx = module.layer_idx if layer_idx is None else layer_idx
    layer = bound.plan_of(layer_idx, hidden_states)
    if bound.cache is None:
        kwargs[name] = None
    else:
        bound.running[layer_idx] = layer
    if module._takes_position_embeddings:
        kwargs["position_embeddings"] = layer.position_embeddings
    else:
        if "position_ids" in kwargs:  # attention that makes its cosines and sines itself
            kwargs["position_ids"] = layer.plan.model_position
        if "position_embeddings" in kwargs:  # of a forward that somebody has wrapped without its signature
            kwargs["position_embeddings"] = layer.position_embeddings
    kwargs[LAYER_PLAN] = layer
    return call_plain(module, *args, **kwargs)


def written_out_forward(module: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the function that an architecture has in place of the forward of its attention modules."""
    if _lost_its_sinks(module):
        return call_plain(module, *args, **kwargs)
    given = named_arguments(type(module), args, kwargs)
    name, bound = bound_cache_in(module, given)
    del given[name]
    layer_idx = given.get("layer_idx")
    layer = bound.plan_of(module.layer_idx if layer_idx is None else layer_idx, given["hidden_states"])
    return type(module)._written_out(module, cache=bound, layer=layer, **given)


def takes_position_embeddings(attention: type[nn.Module]) -> bool:
    """Return whether attention modules of the class `attention` are handed cosines and sines."""
    return "position_embeddings" in parameter_names(attention)
