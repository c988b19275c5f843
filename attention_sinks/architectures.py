"""Which architectures are supported and what is particular to each: data, read at a glance.

A new architecture that is like an existing one is one row here; its names say where the parts to patch are found.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from transformers import PreTrainedConfig

from .positions import HALVES, Pairing


@dataclass(frozen=True)
class Architecture:
    """Facts about one `config.model_type`.

    Parameters
    ----------
    attention : str
        Class name of its attention modules, which call `Cache.update` and the attention interface.
    rotary : str or None, default "rotary_emb"
        Attribute of the base model that makes cosines and sines; None for a model without rotary positions.
    pairing : Pairing, default HALVES
        How it pairs the dimensions it turns.
    """

    attention: str
    rotary: str | None = "rotary_emb"
    pairing: Pairing = HALVES


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaAttention"),
}


def supported_model_types() -> list[str]:
    """Sorted `config.model_type` strings that can stream."""
    return sorted(ARCHITECTURES)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The row of `config.model_type`.

    Raises
    ------
    NotImplementedError
        When the type has no row or is an encoder-decoder; names close matches and how to add one.
    """
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"model_type={model_type!r} is an encoder-decoder; attention sinks are for decoder-only models: "
            "use one of supported_model_types()."
        )
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    close = difflib.get_close_matches(model_type, ARCHITECTURES)
    similar = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise NotImplementedError(
        f"model_type={model_type!r} is not supported by attention_sinks.{similar} Use one of supported_model_types(), "
        "or add a row to ARCHITECTURES in attention_sinks/architectures.py (the README says how)."
    )
