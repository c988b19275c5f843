"""Finding one's way in a model: its decoder, and the arguments of a forward by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..versions import with_cache_named

_PARAMETER_NAMES: dict[type, tuple[str, ...]] = {}


def parameter_names(module_class: type) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order; read once (a `functools.cache` cannot be compiled)."""
    if module_class not in _PARAMETER_NAMES:
        _PARAMETER_NAMES[module_class] = tuple(inspect.signature(module_class.forward).parameters)[1:]
    return _PARAMETER_NAMES[module_class]


def named_arguments(module_class: type, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward by name; the cache under the name of this release, whichever was used."""
    return with_cache_named({**dict(zip(parameter_names(module_class), args, strict=False)), **kwargs})


def tokens_of(given: dict[str, Any]) -> torch.Tensor | None:
    """The tokens among the arguments of a call, as ids [batch, columns] or as embeddings [batch, columns, hidden]."""
    ids = given.get("input_ids")
    return given.get("inputs_embeds") if ids is None else ids


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The decoder of `model` without head or adapter; TypeError when it is no Transformers model."""
    model = without_adapter(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a Transformers model, not {type(model).__name__}; load it with Transformers.")
    return _decoder_in(model) or model.base_model


def _decoder_in(model: PreTrainedModel) -> PreTrainedModel | None:
    """The innermost model that owns the layers of the text decoder."""
    text = model.config.get_text_config(decoder=True)

    def owns_layers(module: nn.Module) -> bool:
        lists = (child for child in module.children() if isinstance(child, nn.ModuleList))
        return any(len(layers) == text.num_hidden_layers for layers in lists)

    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    decoders = [module for module in models if module.config.model_type == text.model_type and owns_layers(module)]
    return decoders[-1] if decoders else None


def without_adapter(model: nn.Module) -> nn.Module:
    """The model inside a PEFT wrapper, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
