"""Attention sinks for the language models of Transformers: endless fluent text at constant cost (StreamingLLM).

Use `from attention_sinks import AutoModelForCausalLM` in place of `from transformers import AutoModelForCausalLM`.
"""

from .versions import check_transformers

check_transformers()

from transformers import AutoTokenizer  # noqa: E402

from . import model_classes  # noqa: E402
from .auto import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from .cache.cache import AttentionSinkKVCache  # noqa: E402
from .chat.chat import StreamingChat  # noqa: E402
from .generation.contrastive import contrastive_search  # noqa: E402
from .inject import attention_sinks_injected, inject_attention_sinks, remove_attention_sinks  # noqa: E402
from .legacy import register_legacy  # noqa: E402
from .model_classes import *  # noqa: E402, F403
from .models.registry import supported_model_types  # noqa: E402
from .verification import Verification, verify_attention_sinks  # noqa: E402

register_legacy()

__version__ = "0.5.0"

__all__ = [
    "AttentionSinkKVCache",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "StreamingChat",
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
