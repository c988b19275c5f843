"""JAIS, which is the model of BTLM under another name."""

from .btlm import (
    BtlmForCausalLM,
    BtlmForQuestionAnswering,
    BtlmForSequenceClassification,
    BtlmForTokenClassification,
    BtlmModel,
    JaisConfig,
)
from .on_demand import register


class JaisModel(BtlmModel):
    config_class = JaisConfig


class JaisForCausalLM(BtlmForCausalLM):
    config_class = JaisConfig


class JaisForSequenceClassification(BtlmForSequenceClassification):
    config_class = JaisConfig


class JaisForTokenClassification(BtlmForTokenClassification):
    config_class = JaisConfig


class JaisForQuestionAnswering(BtlmForQuestionAnswering):
    config_class = JaisConfig


register(
    JaisConfig,
    AutoModel=JaisModel,
    AutoModelForCausalLM=JaisForCausalLM,
    AutoModelForSequenceClassification=JaisForSequenceClassification,
    AutoModelForTokenClassification=JaisForTokenClassification,
    AutoModelForQuestionAnswering=JaisForQuestionAnswering,
)
