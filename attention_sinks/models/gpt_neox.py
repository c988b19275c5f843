"""GPT-NeoX and Pythia: rotary halves over a part of the head."""

import transformers
from transformers import GPTNeoXPreTrainedModel

from .streaming import StreamingModel


class GPTNeoXModel(StreamingModel, transformers.GPTNeoXModel): ...


class GPTNeoXForCausalLM(StreamingModel, transformers.GPTNeoXForCausalLM): ...


class GPTNeoXForSequenceClassification(StreamingModel, transformers.GPTNeoXForSequenceClassification): ...


class GPTNeoXForTokenClassification(StreamingModel, transformers.GPTNeoXForTokenClassification): ...


class GPTNeoXForQuestionAnswering(StreamingModel, transformers.GPTNeoXForQuestionAnswering): ...


__all__ = [
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXPreTrainedModel",
]
