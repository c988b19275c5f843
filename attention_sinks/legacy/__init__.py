"""Architectures that Transformers 5 does not know by name; their checkpoints load into classes of today.

`register_legacy` registers them with the Auto classes of Transformers. A registered class takes precedence over the
code that a repository names in `auto_map`, even with `trust_remote_code=True`, so no code of a repository runs.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from . import btlm, jais, qwen, stablelm_epoch, yi

MODELS: dict[str, tuple[type[PreTrainedModel], ...]] = {
    "AutoModel": (yi.YiModel, stablelm_epoch.StableLMEpochModel, qwen.QWenModel, btlm.BtlmModel, jais.JaisModel),
    "AutoModelForCausalLM": (
        yi.YiForCausalLM,
        stablelm_epoch.StableLMEpochForCausalLM,
        qwen.QWenLMHeadModel,
        btlm.BtlmForCausalLM,
        jais.JaisForCausalLM,
    ),
    "AutoModelForSequenceClassification": (
        yi.YiForSequenceClassification,
        stablelm_epoch.StableLMEpochForSequenceClassification,
        qwen.QWenForSequenceClassification,
        btlm.BtlmForSequenceClassification,
        jais.JaisForSequenceClassification,
    ),
    "AutoModelForTokenClassification": (
        yi.YiForTokenClassification,
        stablelm_epoch.StableLMEpochForTokenClassification,
        qwen.QWenForTokenClassification,
        btlm.BtlmForTokenClassification,
        jais.JaisForTokenClassification,
    ),
    "AutoModelForQuestionAnswering": (
        yi.YiForQuestionAnswering,
        qwen.QWenForQuestionAnswering,
        btlm.BtlmForQuestionAnswering,
        jais.JaisForQuestionAnswering,
    ),
}
"""Name of an Auto class -> the model classes that it finds by their configs."""

CONVERSIONS: dict[str, tuple[Any, ...]] = {"Yi": yi.CONVERSION, "qwen": qwen.CONVERSION}
"""`config.model_type` -> how Transformers turns the weights of its checkpoints into those of the native class."""


def register_legacy() -> None:
    """Register these types with the Auto classes of Transformers. A second call changes nothing."""
    for name, models in MODELS.items():
        for model in models:
            config_class: Any = model.config_class
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
            getattr(transformers, name).register(config_class, model, exist_ok=True)
    for model_type, conversion in CONVERSIONS.items():
        register_checkpoint_conversion_mapping(model_type, list(conversion), overwrite=True)
