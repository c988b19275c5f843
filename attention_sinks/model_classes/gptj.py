"""GPT-J with attention sinks from the start."""

import transformers
from transformers import GPTJPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "GPTJForCausalLM",
    "GPTJForQuestionAnswering",
    "GPTJForSequenceClassification",
    "GPTJModel",
    "GPTJPreTrainedModel",
]


class GPTJModel(StreamingModel, transformers.GPTJModel): ...


class GPTJForCausalLM(StreamingModel, transformers.GPTJForCausalLM): ...


class GPTJForSequenceClassification(StreamingModel, transformers.GPTJForSequenceClassification): ...


class GPTJForQuestionAnswering(StreamingModel, transformers.GPTJForQuestionAnswering): ...
