"""The facts about Qwen v1 that attention sinks need: it is Qwen2, but for what it does to long texts."""

from __future__ import annotations

from typing import Any

from ..architecture.spec import Architecture, Limit


def _limit(config: Any) -> Limit | None:
    """Return up to how many visible tokens the model is exact without what Qwen v1 does to longer texts."""
    if not (config.use_dynamic_ntk or config.use_logn_attn):
        return None
    reason = f"beyond seq_length={config.seq_length} it changes frequencies and scales queries, which is not computed"
    return Limit(config.seq_length, reason)


ARCHITECTURE = Architecture("Qwen2Attention", limit=_limit)
