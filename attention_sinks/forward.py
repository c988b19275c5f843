"""What runs in place of the forwards of an injected model: base model, rotary module, attention modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .cache import AttentionSinkKVCache
from .call import CALL_ARGUMENT, Call, LayerCall
from .inputs import Inputs, read_inputs
from .rows import Rows
from .step import Reach, Step, block_step, token_step

PIECE_SIZE = 1024
"""Longer calls are cut into pieces of this many columns, so that a call of any length needs bounded memory."""

QUERY_BLOCK = {"cpu": 64}
"""Queries scored at once, by device type: on a CPU what fits a core's own memory is fastest; elsewhere 256."""


def streaming_forward(model: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """The base model's forward: check the call, cut it, run the pieces, then advance the streams."""
    inputs = read_inputs(model, args, kwargs)
    rows, outputs = inputs.rows, []
    try:
        for piece in inputs.pieces(PIECE_SIZE):
            rows, output = _run(inputs, previous, piece, rows)
            outputs.append(output)
        if inputs.keep_cache:
            inputs.cache.commit(rows, inputs.columns)
    finally:
        if inputs.cache is not None:
            inputs.cache.discard()
    output = inputs.restore_order(_joined(outputs))
    output["past_key_values"] = inputs.cache if inputs.keep_cache else None
    return output if inputs.return_dict else output.to_tuple()


def _run(inputs: Inputs, previous: Callable | None, piece: slice, rows: Rows) -> tuple[Rows, BaseModelOutputWithPast]:
    """One piece of a call: work out its step and run the layers; returns where the rows stand after it."""
    injection, settings = inputs.injection, inputs.settings
    rotaries, reaches = injection.rotaries(settings), injection.reaches(settings)
    counts, columns = inputs.counts(piece), piece.stop - piece.start
    by_token = inputs.columns == 1 and not inputs.with_gradients and min(rows.seen) >= max(1, settings.sink_size)
    shift = rows.shift_for(max(counts), settings.sink_size, settings.window_size)
    if inputs.cache is not None and any(shift):
        rows = rows.rebase(shift)
        inputs.cache.rebase(shift, rotaries)
        if by_token:
            inputs.cache.commit(rows, 0)
    steps = {reach: _step(rows, counts, columns, reach, by_token, inputs.device) for reach in set(reaches)}
    call = Call(steps, reaches, rotaries, injection.model.config._attn_implementation)
    if by_token:
        inputs.cache.turn_sinks(call)
    position_ids = steps[reaches[0]].cache_position.to(inputs.device)
    arguments = {**inputs.arguments(piece), "position_ids": position_ids, CALL_ARGUMENT: call}
    return rows.advance(counts), _call_previous(injection.model, previous, **arguments)


def _step(rows: Rows, counts: tuple[int, ...], columns: int, reach: Reach, by_token: bool, device) -> Step:
    if by_token:
        return token_step(rows, [bool(count) for count in counts], reach)
    return block_step(rows, counts, columns, reach, QUERY_BLOCK.get(device.type, 256))


def _joined(outputs: list[BaseModelOutputWithPast]) -> BaseModelOutputWithPast:
    """The outputs of the pieces of a call as one."""
    if len(outputs) == 1:
        return outputs[0]
    known = {"last_hidden_state", "hidden_states", "past_key_values"}
    if unknown := {name for name, value in outputs[0].items() if value is not None} - known:
        raise NotImplementedError(
            f"a call longer than {PIECE_SIZE} tokens cannot return {', '.join(sorted(unknown))}; make shorter calls."
        )
    joined = outputs[0]
    joined["last_hidden_state"] = torch.cat([output.last_hidden_state for output in outputs], dim=1)
    if joined.get("hidden_states") is not None:
        layers = zip(*(output.hidden_states for output in outputs), strict=True)
        joined["hidden_states"] = tuple(torch.cat(states, dim=1) for states in layers)
    return joined


def rotary_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any) -> None:
    """Nothing: attention takes its cosines and sines from the call, for which positions alone are not enough."""


def attention_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """An attention module's own forward, with the call's positions and the call's view of the cache."""
    call: Call | None = kwargs.get(CALL_ARGUMENT)
    if call is None:
        raise RuntimeError(
            f"{type(module).__name__} of a model with attention sinks was called outside its model's forward; call the "
            "model, or remove_attention_sinks(model) first."
        )
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    layer_call = call.at(module.layer_idx, hidden_states)
    if kwargs.get("past_key_values") is not None:
        kwargs["past_key_values"] = _LayerView(kwargs["past_key_values"], layer_call)
    kwargs["position_embeddings"] = layer_call.position_embeddings
    return _call_previous(module, previous, *args, **{**kwargs, CALL_ARGUMENT: layer_call})


class _LayerView:
    """A cache as one layer's attention uses it during one call."""

    def __init__(self, cache: AttentionSinkKVCache, call: LayerCall) -> None:
        self._cache, self._call = cache, call

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        return self._cache.layers[layer_idx].update(key_states, value_states, self._call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _call_previous(module: nn.Module, previous: Callable | None, *args: Any, **kwargs: Any):
    """What the module ran before it was patched: its class's forward unless somebody had replaced it."""
    return previous(*args, **kwargs) if previous is not None else type(module).forward(module, *args, **kwargs)
