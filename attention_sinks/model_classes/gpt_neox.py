"""GPT-NeoX with attention sinks from the start."""

import transformers
from transformers import GPTNeoXPreTrainedModel

from .streaming_model import StreamingModel

__all__ = [
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXPreTrainedModel",
]


class GPTNeoXModel(StreamingModel, transformers.GPTNeoXModel): ...


class GPTNeoXForCausalLM(StreamingModel, transformers.GPTNeoXForCausalLM): ...


class GPTNeoXForSequenceClassification(StreamingModel, transformers.GPTNeoXForSequenceClassification): ...


class GPTNeoXForTokenClassification(StreamingModel, transformers.GPTNeoXForTokenClassification): ...


class GPTNeoXForQuestionAnswering(StreamingModel, transformers.GPTNeoXForQuestionAnswering): ...
