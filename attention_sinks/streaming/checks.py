"""Calls that cannot stream, refused with the reason and the cure before anything is touched."""

from __future__ import annotations

from typing import Any

import torch

from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache


def check_kind_of_cache(cache: Any) -> None:
    if not isinstance(cache, AttentionSinkKVCache):
        raise TypeError(
            f"cache is a {type(cache).__name__}, but a model with attention sinks streams through an "
            "AttentionSinkKVCache; make one with AttentionSinkKVCache(model) or leave it out (PEFT's prefix tuning "
            "brings its own and cannot stream)."
        )


def check_cache(cache: Any, setup: Setup, batch_size: int) -> None:
    check_kind_of_cache(cache)
    if not cache.serves(setup.model):
        raise ValueError("cache was made for another model; make one with AttentionSinkKVCache(model) for this model.")
    if len(cache.layers) != len(setup.kinds):
        raise ValueError(
            f"cache was made for another number of layers, {len(cache.layers)}, than the model runs now, "
            f"{len(setup.kinds)}; make a new AttentionSinkKVCache(model)."
        )
    if cache.settings.prefill != setup.settings.prefill:
        raise ValueError(
            f"cache was made with attention_sink_prefill={cache.settings.prefill!r}, but the model now has "
            f"{setup.settings.prefill!r}; make a new AttentionSinkKVCache(model)."
        )
    if cache.streams.seen and len(cache.streams.seen) != batch_size:
        raise ValueError(
            f"the call has batch size {batch_size}, but cache holds {len(cache.streams.seen)} rows; use the "
            "same batch size, batch_select_indices / batch_repeat_interleave, or reset() the cache."
        )


def check_attentions(columns: int, visible_size: int) -> None:
    if columns > visible_size:
        raise ValueError(
            f"output_attentions=True with a call of {columns} tokens: the weights of a call longer than sinks + window "
            f"+ 1 = {visible_size} have no common columns; cut the call into shorter ones."
        )


def check_dense(setup: Setup, cache: AttentionSinkKVCache | None, new: torch.Tensor | int) -> None:
    """The tokens of a dense call see all that is cached and each other, however small the window."""
    limit = setup.architecture.limit(setup.model.config)
    cached = cache.tokens_cached if cache is not None and cache.streams.seen else 0
    sees = int(torch.as_tensor(cached + new).max())
    if limit is not None and sees > limit.tokens:
        raise ValueError(
            f"attention_sink_prefill='dense' lets the tokens of this call see {sees} tokens, but "
            f"{setup.model.config.model_type} can have at most {limit.tokens}: {limit.reason}; make shorter calls "
            "or use attention_sink_prefill='streaming'."
        )


def check_padding_of_states(real: torch.Tensor | None, order: torch.Tensor | None, cache) -> None:
    """States advance on padding too, except where Transformers leaves it out: before the first token of a row."""
    if real is None or (order is None and (cache is None or cache.streams.rows is None)):
        return
    raise ValueError(
        "attention_mask has zeros after the first token of a row, but this model has linear attention or state space "
        "layers, whose states cannot leave them out; pad on the left, in the first call only."
    )


def check_single_tokens(setup: Setup, with_gradients: bool) -> None:
    """A call that has to be cut into single tokens can be neither dense nor trained through."""
    if with_gradients or setup.settings.prefill == "dense":
        raise NotImplementedError(
            f"the states of {type(setup.model).__name__} start anew in every call of several tokens, in "
            "Transformers itself: with gradients or attention_sink_prefill='dense', pass one token at a time after the "
            "first call."
        )
