"""Architectures that Transformers 5 does not know by name; their checkpoints load into classes of today.

`register_legacy` registers them with the Auto classes of Transformers. A registered class takes precedence over the
code that a repository names in `auto_map`, even with `trust_remote_code=True`, so no code of a repository runs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import AutoConfig

from .on_demand import ConfigOnDemand

CONFIGS: tuple[Any, ...] = (
    ConfigOnDemand("BtlmConfig", "btlm", "btlm"),
    ConfigOnDemand("JaisConfig", "jais", "jais"),
    ConfigOnDemand("QWenConfig", "qwen", "qwen"),
    ConfigOnDemand("StableLMEpochConfig", "stablelm_epoch", "stablelm_epoch"),
    ConfigOnDemand("YiConfig", "Yi", "yi"),
)
"""Each with the module that registers it and its models."""


@cache
def register_legacy() -> None:
    """Register these types with the Auto classes of Transformers. A second call changes nothing."""
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
