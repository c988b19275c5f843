"""Multimodal models around a text decoder: text passes, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..architecture.setup import named_arguments, parameter_names, tokens_of
from ..versions import with_both_names

MEDIA = ("pixel_", "image_", "video_", "audio_", "input_features", "input_values", "mm_encoder_outputs")
"""How the arguments begin that bring something else than text."""

TEXT_ARGUMENTS = "attention_sinks_text_arguments"


def wrapper_forward(module: nn.Module, *args: Any, previous: Callable | None = None, **kwargs: Any):
    """The forward of a model around the decoder: hands the caller's 2D mask and positions through.

    It takes the mask for masks that are ready. Positions of its own would follow from the length of the cache, or from
    what the module keeps of its last call.
    """
    given = named_arguments(type(module), args, kwargs)
    refuse_media(module, given)
    handed = {name: given.get(name) for name in ("attention_mask", "position_ids")}
    given["attention_mask"] = {TEXT_ARGUMENTS: handed}
    if "position_ids" in parameter_names(type(module)):
        given["position_ids"] = _placeholder(given)
    output = previous(**given) if previous is not None else type(module).forward(module, **given)
    return with_both_names(output)


def refuse_media(module: nn.Module, given: dict[str, Any]) -> None:
    """NotImplementedError when an argument of `module` brings something else than text."""
    for name, value in given.items():
        brings = any(part is not None for part in value.values()) if isinstance(value, dict) else value is not None
        if name.startswith(MEDIA) and brings:
            raise NotImplementedError(
                f"{name} cannot be used with attention sinks: {type(module).__name__} streams text only; leave it out, "
                "or remove_attention_sinks(model) first."
            )


def _placeholder(given: dict[str, Any]) -> torch.Tensor | None:
    """Positions [1, columns] that nobody reads."""
    tokens = tokens_of(given)
    return None if tokens is None else torch.zeros(1, tokens.shape[1], dtype=torch.long, device=tokens.device)


def text_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """`given` with the mask and the positions of the caller, whether or not they came through a wrapper."""
    mask = given.get("attention_mask")
    handed = mask[TEXT_ARGUMENTS] if isinstance(mask, dict) and TEXT_ARGUMENTS in mask else {}
    return {**given, **handed}
