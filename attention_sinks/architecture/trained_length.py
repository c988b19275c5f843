"""How long the texts were that a model was trained on, as far as its config says so."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def trained_length(config: PreTrainedConfig) -> int | None:
    """Return the length in tokens, or None when the config has none.

    A factor of linear scaling or YaRN is a factor on the original length. Configs differ in whether
    `max_position_embeddings` contains it; the longest length that can be meant is returned.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    return max(length, *(_stretched(length, kind) for kind in kinds))


def _stretched(length: int, parameters: dict[str, Any]) -> int:
    """Return the length that rotary `parameters` are made for."""
    factor = parameters.get("factor")
    if parameters.get("rope_type") not in ("linear", "yarn") or factor is None:
        return length
    return int((parameters.get("original_max_position_embeddings") or length) * factor)
