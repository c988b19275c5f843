"""Multimodal models around a text decoder: text passes, everything else is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..architecture.modules import named_arguments, parameter_names, tokens_of
from ..architecture.streaming_class import call_plain
from ..versions import with_both_names

MEDIA = ("pixel_", "image_", "video_", "audio_", "input_features", "input_values", "mm_encoder_outputs")
"""How the arguments begin that bring something else than text."""

TEXT_ARGUMENTS = "attention_sinks_text_arguments"
"""Under this key the wrapper's mask holds what the caller gave for the text."""


def wrapper_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a model around the decoder: it hands the caller's 2D mask and positions through.

    The wrapped forward takes this mask for masks that are ready. Its own positions would follow from the length of the
    cache, or from what the module keeps of its last call, so it gets placeholders.
    """
    given = named_arguments(type(module), args, kwargs)
    refuse_media(module, given)
    handed = {name: given.get(name) for name in ("attention_mask", "position_ids")}
    given["attention_mask"] = {TEXT_ARGUMENTS: handed}
    if "position_ids" in parameter_names(type(module)):
        given["position_ids"] = _placeholder(given)
    return with_both_names(call_plain(module, **given))


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
