"""Multimodal models around a text decoder: text passes, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .injection import named_arguments

MEDIA = ("pixel_", "image_", "video_", "audio_", "input_features", "input_values", "mm_encoder_outputs")
"""How the arguments begin that bring something else than text."""

TEXT_MASK = "attention_sinks_text_mask"


def wrapper_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """The forward of a model around the decoder: hands the 2D mask through, which it takes for masks that are ready."""
    given = named_arguments(type(module), args, kwargs)
    for name, value in given.items():
        brings = any(part is not None for part in value.values()) if isinstance(value, dict) else value is not None
        if name.startswith(MEDIA) and brings:
            raise NotImplementedError(
                f"{name} cannot be used with attention sinks: {type(module).__name__} streams text only; leave it out, "
                "or remove_attention_sinks(model) first."
            )
    given["attention_mask"] = {TEXT_MASK: given.get("attention_mask")}
    return previous(**given) if previous is not None else type(module).forward(module, **given)


def text_mask(mask: Any) -> torch.Tensor | None:
    """The 2D mask the caller gave, whether or not it came through a wrapper."""
    return mask[TEXT_MASK] if isinstance(mask, dict) and TEXT_MASK in mask else mask
