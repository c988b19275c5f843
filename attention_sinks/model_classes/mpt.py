"""MPT with attention sinks from the start."""

import transformers
from transformers import MptPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "MptForCausalLM",
    "MptForQuestionAnswering",
    "MptForSequenceClassification",
    "MptForTokenClassification",
    "MptModel",
    "MptPreTrainedModel",
]


class MptModel(StreamingModel, transformers.MptModel): ...


class MptForCausalLM(StreamingModel, transformers.MptForCausalLM): ...


class MptForSequenceClassification(StreamingModel, transformers.MptForSequenceClassification): ...


class MptForTokenClassification(StreamingModel, transformers.MptForTokenClassification): ...


class MptForQuestionAnswering(StreamingModel, transformers.MptForQuestionAnswering): ...
