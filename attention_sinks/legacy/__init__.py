"""Architectures Transformers 5 does not know by name, loaded into classes of today; no code of theirs is run.

Importing this package registers them with the Auto classes of Transformers, where a class of ours takes precedence over
the code a repository names in `auto_map`, even with `trust_remote_code=True`.
"""

from __future__ import annotations

import transformers
from transformers import AutoConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from . import btlm, jais, qwen, stablelm_epoch, yi

MODELS = {
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
"""Auto class -> the model classes it finds by their configs."""

CONVERSIONS = {"Yi": yi.CONVERSION, "qwen": qwen.CONVERSION}
"""`config.model_type` -> how weights of its checkpoints become those of the native class."""


def register_legacy() -> None:
    """Make the Auto classes of Transformers know these types; calling it again changes nothing."""
    for name, models in MODELS.items():
        for model in models:
            AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
            getattr(transformers, name).register(model.config_class, model, exist_ok=True)
    for model_type, conversion in CONVERSIONS.items():
        register_checkpoint_conversion_mapping(model_type, list(conversion), overwrite=True)
