"""Which architectures are supported: one row each.

A new architecture that is like an existing one is one row here; its names say where the parts to patch are found.
"""

from __future__ import annotations

import difflib

from transformers import PreTrainedConfig

from .architecture import Architecture
from .models import falcon, gptj, mpt

ARCHITECTURES: dict[str, Architecture] = {
    "falcon": falcon.ARCHITECTURE,
    "gpt_neox": Architecture("GPTNeoXAttention"),
    "gptj": gptj.ARCHITECTURE,
    "llama": Architecture("LlamaAttention"),
    "mistral": Architecture("MistralAttention"),
    "mpt": mpt.ARCHITECTURE,
    "qwen2": Architecture("Qwen2Attention"),
    "stablelm": Architecture("StableLmAttention", hands_on=False),
}


def supported_model_types() -> list[str]:
    """Sorted `config.model_type` strings that can stream."""
    return sorted(ARCHITECTURES)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The row of `config.model_type`.

    Raises
    ------
    NotImplementedError
        When the type has no row, is an encoder-decoder or is configured in a way that cannot stream; names close
        matches and how to add one.
    """
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"model_type={model_type!r} is an encoder-decoder; attention sinks are for decoder-only models: "
            "use one of supported_model_types()."
        )
    if model_type not in ARCHITECTURES:
        close = difflib.get_close_matches(model_type, ARCHITECTURES)
        similar = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise NotImplementedError(
            f"model_type={model_type!r} is not supported by attention_sinks.{similar} Use one of "
            "supported_model_types(), or add a row to ARCHITECTURES in attention_sinks/architectures.py (the README "
            "says how)."
        )
    architecture = ARCHITECTURES[model_type]
    if reason := architecture.refuses(config):
        raise NotImplementedError(f"model_type={model_type!r} {reason}")
    return architecture
