"""What can be said of an architecture in a few words, as one config has it."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedConfig

from ..architecture.spec import Architecture
from ..legacy.btlm.streaming_btlm import StoredSlopes
from ..positions.rotary import NEIGHBOURS
from ..positions.schemes import LinearBias, NoPositions, Rope, RopeTable

FLAGS = {
    "eager": None,
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""Attention implementation -> the flag by which a model class of Transformers says that it has it. All have eager."""


def positions_of(architecture: Architecture, config: PreTrainedConfig) -> str:
    """Say how the layers know positions."""
    scheme = architecture.scheme(config)
    if not isinstance(scheme, Rope):
        names = {RopeTable: "rotary (neighbours)", LinearBias: "ALiBi", StoredSlopes: "ALiBi", NoPositions: "none"}
        return names[type(scheme)]
    rotates = [scheme.rotates(config, index) for index in range(config.num_hidden_layers)]
    pairing = "neighbours" if scheme.pairing.spread is NEIGHBOURS.spread else "halves"
    return f"rotary ({pairing})" + ("" if all(rotates) else ", in some layers none")


def implementations_of(architecture: Architecture, config: PreTrainedConfig) -> list[str]:
    """Return the attention implementations that the model class has and that can stream."""
    kind = type(config)
    model_class: Any = (MODEL_FOR_CAUSAL_LM_MAPPING if kind in MODEL_FOR_CAUSAL_LM_MAPPING else MODEL_MAPPING)[kind]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    has = [name for name, flag in FLAGS.items() if flag is None or getattr(model_class, flag)]
    return [name for name in has if _streams_with(architecture, config, name)]


def _streams_with(architecture: Architecture, config: PreTrainedConfig, implementation: str) -> bool:
    try:
        config._attn_implementation = implementation
    except ValueError:  # some configs refuse what the flag of their class allows
        return False
    return architecture.streams(config)


def notes_of(architecture: Architecture, config: PreTrainedConfig) -> list[str]:
    """Return what else there is to say: the note of the entry, and those that follow from the facts."""
    kinds = architecture.kinds(config)
    limited, indexed = architecture.limit(config) is not None, any(kind.indexed for kind in kinds)
    sliding = {bool(kind.window) for kind in kinds if kind.attends}
    notes = {
        "latent attention": architecture.rotated == "values",
        "where all layers slide natively, sinks and window stay within that": sliding == {True},
        "sliding layers keep their own window": sliding == {True, False},
        "chunked layers keep their chunks": any(kind.chunk for kind in kinds),
        "linear layers keep their own states": any(kind.states for kind in kinds),
        "some layers share keys": any(kind.attends and not kind.stores for kind in kinds),
        "S + W + 1 within its table of positions": limited and not indexed,
        "S + W + 1 up to where its indexer leaves keys out": indexed,
    }
    return [*filter(None, [architecture.notes]), *(note for note, holds in notes.items() if holds)]
