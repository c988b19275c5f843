"""Llama: rotary halves over the whole head, positions made once by the base model."""

import transformers
from transformers import LlamaPreTrainedModel

from .streaming import StreamingModel


class LlamaModel(StreamingModel, transformers.LlamaModel): ...


class LlamaForCausalLM(StreamingModel, transformers.LlamaForCausalLM): ...


class LlamaForSequenceClassification(StreamingModel, transformers.LlamaForSequenceClassification): ...


class LlamaForTokenClassification(StreamingModel, transformers.LlamaForTokenClassification): ...


class LlamaForQuestionAnswering(StreamingModel, transformers.LlamaForQuestionAnswering): ...


__all__ = [
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaModel",
    "LlamaPreTrainedModel",
]
