"""BTLM and JAIS, for which Transformers has no class: ALiBi, SwiGLU, muP."""

from .alibi_btlm import alibi_slopes
from .configuration_btlm import BtlmConfig, JaisConfig
from .heads_btlm import BtlmForQuestionAnswering, BtlmForSequenceClassification, BtlmForTokenClassification
from .modeling_btlm import BtlmForCausalLM, BtlmModel, BtlmPreTrainedModel

__all__ = [
    "BtlmConfig",
    "BtlmForCausalLM",
    "BtlmForQuestionAnswering",
    "BtlmForSequenceClassification",
    "BtlmForTokenClassification",
    "BtlmModel",
    "BtlmPreTrainedModel",
    "JaisConfig",
    "alibi_slopes",
]
