"""Put attention sinks into a loaded model and take them out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from .architecture.modules import base_model_of
from .patching import install, installed_in, restore, uninstall
from .settings import CacheDtype, Prefill, SinkSettings, cache_dtype_named
from .verification import check_release_with, setup_for
from .versions import is_newer_than_tested

ModelT = TypeVar("ModelT", bound=nn.Module)


def inject_attention_sinks(
    model: ModelT,
    attention_sink_size: int = 4,
    attention_sink_window_size: int = 1020,
    attention_sink_prefill: Prefill = "streaming",
    attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
) -> ModelT:
    """Make a loaded model stream; injecting again replaces the settings.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Any supported model, with or without a head, also quantised, offloaded or PEFT-wrapped.
    attention_sink_size : int, default 4
        First tokens of every stream that are never evicted.
    attention_sink_window_size : int, default 1020
        Most recent tokens a query sees besides itself.
    attention_sink_prefill : {"streaming", "dense"}, default "streaming"
        Whether the tokens of one call see what they would see one by one, or every cached token and each other.
    attention_sink_cache_dtype : torch.dtype or str, optional
        What keys and values are rounded to when they enter a cache: torch.bfloat16, torch.float16, "int8" (8 bits a
        number) or "int8-int4" (8 bits for keys, 4 for values). Default: nothing is rounded.

    Returns
    -------
    PreTrainedModel or PeftModel
        `model` itself.

    Raises
    ------
    NotImplementedError
        When the architecture is not supported; or when the installed Transformers is newer than any that was tested
        and `verify_attention_sinks(model)` finds that the model does not stream right with it.
    TypeError, ValueError
        When `model` is no Transformers model or a setting is out of range. The model is then as it was.
    RuntimeError
        While a call of a model with attention sinks runs, in another thread for example.
    """
    cache_dtype = cache_dtype_named(attention_sink_cache_dtype)
    settings = SinkSettings(attention_sink_size, attention_sink_window_size, attention_sink_prefill, cache_dtype)
    setup = setup_for(model, settings)
    if is_newer_than_tested():
        check_release_with(model)
    install(model, setup)
    setup.warn_beyond_training(setup.settings)
    return model


def remove_attention_sinks(model: ModelT) -> ModelT:
    """Give `model` back as it was before `inject_attention_sinks`; a model without sinks is left alone.

    Raises
    ------
    RuntimeError
        While a call of the model runs, in another thread for example.
    """
    uninstall(model)
    return model


@contextmanager
def attention_sinks_injected(
    model: ModelT,
    attention_sink_size: int = 4,
    attention_sink_window_size: int = 1020,
    attention_sink_prefill: Prefill = "streaming",
    attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
) -> Iterator[ModelT]:
    """`inject_attention_sinks` for the length of a `with` block; settings from before it come back after it.

    Raises
    ------
    RuntimeError
        At the end of the block while a call of the model runs. The model then keeps the settings of the block.
    """
    base = base_model_of(model)
    before = installed_in(base)
    try:
        yield inject_attention_sinks(
            model, attention_sink_size, attention_sink_window_size, attention_sink_prefill, attention_sink_cache_dtype
        )
    finally:
        restore(base, before)
