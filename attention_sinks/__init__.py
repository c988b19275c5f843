"""Attention sinks for the language models of Transformers: endless fluent text at constant cost (StreamingLLM).

Write `from attention_sinks import AutoModelForCausalLM` in place of `from transformers import AutoModelForCausalLM`.
"""

from . import versions  # noqa: F401  # it refuses a Transformers that is too old, before other imports fail

# isort: split
from . import model_classes
from .auto import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from .cache.cache import AttentionSinkKVCache
from .chat.answer import Answer, AnswerStream, AnswerStreams, Piece, Usage
from .chat.chat import StreamingChat
from .generation.contrastive import contrastive_search
from .inject import attention_sinks_injected, inject_attention_sinks, remove_attention_sinks
from .legacy import register_legacy
from .model_classes import *  # noqa: F403
from .models.registry import supported_model_types
from .verification import Verification, verify_attention_sinks

register_legacy()

__version__ = "0.5.0"

__all__ = [
    "Answer",
    "AnswerStream",
    "AnswerStreams",
    "AttentionSinkKVCache",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "Piece",
    "StreamingChat",
    "Usage",
    "Verification",
    "attention_sinks_injected",
    "contrastive_search",
    "inject_attention_sinks",
    "remove_attention_sinks",
    "supported_model_types",
    "verify_attention_sinks",
]
__all__ += model_classes.__all__
__all__.sort()
