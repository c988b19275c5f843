"""BTLM with heads for classification and question answering; the models of BTLM for the Auto classes."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from ..on_demand import register
from .configuration_btlm import BtlmConfig
from .modeling_btlm import BtlmForCausalLM, BtlmModel, BtlmPreTrainedModel


class BtlmForSequenceClassification(GenericForSequenceClassification, BtlmPreTrainedModel):
    base_model_prefix = "transformer"


class BtlmForTokenClassification(GenericForTokenClassification, BtlmPreTrainedModel):
    base_model_prefix = "transformer"


class BtlmForQuestionAnswering(GenericForQuestionAnswering, BtlmPreTrainedModel):
    base_model_prefix = "transformer"
    transformer: BtlmModel

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value


register(
    BtlmConfig,
    AutoModel=BtlmModel,
    AutoModelForCausalLM=BtlmForCausalLM,
    AutoModelForSequenceClassification=BtlmForSequenceClassification,
    AutoModelForTokenClassification=BtlmForTokenClassification,
    AutoModelForQuestionAnswering=BtlmForQuestionAnswering,
)
