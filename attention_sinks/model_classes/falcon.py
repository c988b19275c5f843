"""Falcon with attention sinks from the start."""

import transformers
from transformers import FalconPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "FalconForCausalLM",
    "FalconForQuestionAnswering",
    "FalconForSequenceClassification",
    "FalconForTokenClassification",
    "FalconModel",
    "FalconPreTrainedModel",
]


class FalconModel(StreamingModel, transformers.FalconModel): ...


class FalconForCausalLM(StreamingModel, transformers.FalconForCausalLM): ...


class FalconForSequenceClassification(StreamingModel, transformers.FalconForSequenceClassification): ...


class FalconForTokenClassification(StreamingModel, transformers.FalconForTokenClassification): ...


class FalconForQuestionAnswering(StreamingModel, transformers.FalconForQuestionAnswering): ...
