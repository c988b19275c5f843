"""Mistral: like Llama; where it slides natively, all its layers do, and sinks and window stay within that."""

import transformers
from transformers import MistralPreTrainedModel

from .streaming import StreamingModel


class MistralModel(StreamingModel, transformers.MistralModel): ...


class MistralForCausalLM(StreamingModel, transformers.MistralForCausalLM): ...


class MistralForSequenceClassification(StreamingModel, transformers.MistralForSequenceClassification): ...


class MistralForTokenClassification(StreamingModel, transformers.MistralForTokenClassification): ...


class MistralForQuestionAnswering(StreamingModel, transformers.MistralForQuestionAnswering): ...


__all__ = [
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
]
