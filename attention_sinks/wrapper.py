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
    refuse_media(module, given)
    if hasattr(module, "rope_deltas") and given.get("position_ids") is None:
        given["position_ids"] = _positions(given)  # else they would follow from what the module keeps of its last call
    given["attention_mask"] = {TEXT_MASK: given.get("attention_mask")}
    return previous(**given) if previous is not None else type(module).forward(module, **given)


def refuse_media(module: nn.Module, given: dict[str, Any]) -> None:
    """NotImplementedError when an argument of `module` brings something else than text."""
    for name, value in given.items():
        brings = any(part is not None for part in value.values()) if isinstance(value, dict) else value is not None
        if name.startswith(MEDIA) and brings:
            raise NotImplementedError(
                f"{name} cannot be used with attention sinks: {type(module).__name__} streams text only; leave it out, "
                "or remove_attention_sinks(model) first."
            )


def _positions(given: dict[str, Any]) -> torch.Tensor:
    """[1, columns], the columns of a call of text counted on from those of its cache."""
    ids, cache = given.get("input_ids"), given.get("past_key_values")
    ids = given["inputs_embeds"] if ids is None else ids
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + ids.shape[1], device=ids.device)[None]


def text_mask(mask: Any) -> torch.Tensor | None:
    """The 2D mask the caller gave, whether or not it came through a wrapper."""
    return mask[TEXT_MASK] if isinstance(mask, dict) and TEXT_MASK in mask else mask
