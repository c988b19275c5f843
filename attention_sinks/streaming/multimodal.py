"""A multimodal model around a text decoder hands text through. Everything else is refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..architecture.modules import tokens_of

MEDIA = ("pixel_", "image_", "video_", "audio_", "input_features", "input_values", "mm_encoder_outputs")
"""The beginnings of the names of arguments that bring something else than text."""

TEXT_ARGUMENTS = "attention_sinks_text_arguments"
"""The key under which the wrapper's mask holds what the caller gave for the text."""


def refuse_media(module: nn.Module, given: dict[str, Any]) -> None:
    """Raise NotImplementedError when an argument of `module`, `given` by name, brings something else than text."""
    for name, value in given.items():
        brings = any(part is not None for part in value.values()) if isinstance(value, dict) else value is not None
        if name.startswith(MEDIA) and brings:
            raise NotImplementedError(
                f"{name} cannot be used with attention sinks: {type(module).__name__} streams text only; leave it out, "
                "or remove_attention_sinks(model) first."
            )


def placeholder_positions(given: dict[str, Any]) -> torch.Tensor | None:
    """Return positions [1, columns] that nobody reads, for the arguments `given`."""
    tokens = tokens_of(given)
    return None if tokens is None else torch.zeros(1, tokens.shape[1], dtype=torch.long, device=tokens.device)
