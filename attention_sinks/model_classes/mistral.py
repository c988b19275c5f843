"""Mistral with attention sinks from the start."""

import transformers
from transformers import MistralPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
]


class MistralModel(StreamingModel, transformers.MistralModel): ...


class MistralForCausalLM(StreamingModel, transformers.MistralForCausalLM): ...


class MistralForSequenceClassification(StreamingModel, transformers.MistralForSequenceClassification): ...


class MistralForTokenClassification(StreamingModel, transformers.MistralForTokenClassification): ...


class MistralForQuestionAnswering(StreamingModel, transformers.MistralForQuestionAnswering): ...
