"""A model without weights, on PyTorch's meta device. What it stores in a cache has shapes and dtypes, but no values."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..architecture.modules import base_model_of
from ..cache.cache import AttentionSinkKVCache

AUTO_CLASSES = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, transformers.AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.AutoModelForImageTextToText),
)
"""Configs with models of a kind -> the Auto class that makes them. The first that knows a config makes the model."""


ELEMENTWISE = {getattr(torch.Tensor, name) for name in ("mul", "__mul__", "__rmul__", "add", "__add__", "__radd__")}
"""Functions of two tensors or numbers that PyTorch does in Python on the meta device, slowly."""


class Valueless(TorchFunctionMode):
    """Within this block, calls on the meta device are fast, and routers of experts work without values.

    All tokens go to the first expert, or to none.
    """

    chosen = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.is_meta:
            if func in (torch.nonzero, torch.Tensor.nonzero):
                return first.new_empty((0, first.ndim), dtype=torch.long)
            if func is torch.Tensor.tolist:  # how many tokens each expert gets, of those that were chosen last
                return [self.chosen, *[0] * (first.numel() - 1)]
            if func in ELEMENTWISE and not kwargs:
                return _elementwise(*args)
        result = func(*args, **(kwargs or {}))
        if func in (torch.topk, torch.Tensor.topk):
            self.chosen = result[1].numel()
        return result


def _elementwise(one: torch.Tensor, other: Any) -> torch.Tensor:
    """Return a tensor of the shape and dtype of a sum or product."""
    shape = torch.broadcast_shapes(one.shape, other.shape) if isinstance(other, torch.Tensor) else one.shape
    return torch.empty(shape, dtype=torch.result_type(one, other), device="meta")


def model_without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model with `config` in bfloat16 on the meta device, where its weights take no memory.

    Raises
    ------
    ValueError
        When Transformers can make no model of such a config.
    """
    auto: Any = next((auto for mapping, auto in AUTO_CLASSES if type(config) in mapping), transformers.AutoModel)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(deepcopy(config), dtype=torch.bfloat16)
    except Exception as error:  # sizes that do not fit together, numbers that are no sizes
        raise ValueError(
            f"no model can be made of its config ({error or type(error).__name__}); repair the config, or give another "
            "model."
        ) from error
    model.eval()
    return model


def cache_of_one_token(model: PreTrainedModel) -> AttentionSinkKVCache:
    """Return the cache of a model on the meta device, which has attention sinks, after a call of one token.

    Raises
    ------
    ValueError
        When the model cannot be called.
    """
    cache = AttentionSinkKVCache(model)
    base, ids = base_model_of(model), torch.zeros(1, 1, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), Valueless():
            base(input_ids=ids, cache=cache, use_cache=True)
    except Exception as error:  # a config with sizes that do not fit together, or code that needs values
        raise ValueError(
            f"a model with its config cannot be called ({error or type(error).__name__}), so what a conversation takes "
            "is unknown; repair the config, or load the model and look at cache.nbytes."
        ) from error
    return cache
