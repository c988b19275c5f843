"""These functions find their way in a model: to its decoder, and to the arguments of a forward by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..versions import with_cache_named

_PARAMETER_NAMES: dict[type[nn.Module], tuple[str, ...]] = {}
"""What `parameter_names` has read. A `functools.cache` could not be compiled."""


def parameter_names(module_class: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the arguments of a module's forward, in order. They are read once for each class."""
    if module_class not in _PARAMETER_NAMES:
        _PARAMETER_NAMES[module_class] = tuple(inspect.signature(module_class.forward).parameters)[1:]
    return _PARAMETER_NAMES[module_class]


def named_arguments(module_class: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module's forward by name. The cache gets the name of this release."""
    return with_cache_named({**dict(zip(parameter_names(module_class), args, strict=False)), **kwargs})


def tokens_of(given: dict[str, Any]) -> torch.Tensor | None:
    """Return the tokens among the arguments of a call: ids [batch, columns] or embeddings [batch, columns, hidden]."""
    ids = given.get("input_ids")
    return given.get("inputs_embeds") if ids is None else ids


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """Return the decoder of `model` without head or adapter.

    Raises
    ------
    TypeError
        When `model` is no Transformers model.
    """
    model = without_adapter(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a Transformers model, not {type(model).__name__}; load it with Transformers.")
    base_model: Any = model.base_model
    return _decoder_in(model) or base_model


def _decoder_in(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the innermost model that owns the layers of the text decoder, or None."""
    text = model.config.get_text_config(decoder=True)

    def owns_layers(module: nn.Module) -> bool:
        lists = (child for child in module.children() if isinstance(child, nn.ModuleList))
        return any(len(layers) == text.num_hidden_layers for layers in lists)

    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    decoders = [module for module in models if module.config.model_type == text.model_type and owns_layers(module)]
    return decoders[-1] if decoders else None


def without_adapter(model: Any) -> nn.Module:
    """Return the model inside a PEFT wrapper, or `model` itself."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner
