"""BTLM and JAIS, models with ALiBi, SwiGLU and muP for which Transformers has no class."""

from .configuration_btlm import BtlmConfig, JaisConfig
from .heads_btlm import BtlmForQuestionAnswering, BtlmForSequenceClassification, BtlmForTokenClassification
from .modeling_btlm import BtlmForCausalLM, BtlmModel, BtlmPreTrainedModel
from .streaming_btlm import ARCHITECTURE

__all__ = [
    "ARCHITECTURE",
    "BtlmConfig",
    "BtlmForCausalLM",
    "BtlmForQuestionAnswering",
    "BtlmForSequenceClassification",
    "BtlmForTokenClassification",
    "BtlmModel",
    "BtlmPreTrainedModel",
    "JaisConfig",
]
