"""Llama with attention sinks from the start."""

import transformers
from transformers import LlamaPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaModel",
    "LlamaPreTrainedModel",
]


class LlamaModel(StreamingModel, transformers.LlamaModel): ...


class LlamaForCausalLM(StreamingModel, transformers.LlamaForCausalLM): ...


class LlamaForSequenceClassification(StreamingModel, transformers.LlamaForSequenceClassification): ...


class LlamaForTokenClassification(StreamingModel, transformers.LlamaForTokenClassification): ...


class LlamaForQuestionAnswering(StreamingModel, transformers.LlamaForQuestionAnswering): ...
