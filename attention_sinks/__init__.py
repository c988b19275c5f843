"""Attention sinks for the language models of Transformers: endless fluent text at constant cost (StreamingLLM).

Write `from attention_sinks import AutoModelForCausalLM` in place of `from transformers import AutoModelForCausalLM`.
"""

from typing import TYPE_CHECKING, Any

from . import versions  # noqa: F401  # it refuses a Transformers that is too old, before other imports fail

# isort: split
from importlib import import_module

from . import model_classes
from .legacy import register_legacy

if TYPE_CHECKING:
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
    from .model_classes import *  # noqa: F403
    from .models.registry import supported_model_types
    from .pool.answers import PoolAnswerStream
    from .pool.conversation import Conversation, ConversationMovedError
    from .pool.host import PoolFullError
    from .pool.numbers import PoolNumbers
    from .pool.pool import StreamPool
    from .sessions.store import SessionInfo, SessionInUseError
    from .verification import Verification, verify_attention_sinks

register_legacy()

__version__ = "0.5.0"

_MODULES = {
    "Answer": "chat.answer",
    "AnswerStream": "chat.answer",
    "AnswerStreams": "chat.answer",
    "AttentionSinkKVCache": "cache.cache",
    "AutoModel": "auto",
    "AutoModelForCausalLM": "auto",
    "AutoModelForQuestionAnswering": "auto",
    "AutoModelForSequenceClassification": "auto",
    "AutoModelForTokenClassification": "auto",
    "AutoTokenizer": "auto",
    "Conversation": "pool.conversation",
    "ConversationMovedError": "pool.conversation",
    "Piece": "chat.answer",
    "PoolAnswerStream": "pool.answers",
    "PoolFullError": "pool.host",
    "PoolNumbers": "pool.numbers",
    "SessionInUseError": "sessions.store",
    "SessionInfo": "sessions.store",
    "StreamPool": "pool.pool",
    "StreamingChat": "chat.chat",
    "Usage": "chat.answer",
    "Verification": "verification",
    "attention_sinks_injected": "inject",
    "contrastive_search": "generation.contrastive",
    "inject_attention_sinks": "inject",
    "remove_attention_sinks": "inject",
    "supported_model_types": "models.registry",
    "verify_attention_sinks": "verification",
    **dict.fromkeys(model_classes.__all__, "model_classes"),
}
"""Public name -> the module that has it. It is loaded when somebody asks for the name: what models are made of takes
Transformers as long to load as all that `import attention_sinks` needs."""

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
    "Conversation",
    "ConversationMovedError",
    "Piece",
    "PoolAnswerStream",
    "PoolFullError",
    "PoolNumbers",
    "SessionInUseError",
    "SessionInfo",
    "StreamPool",
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

if not TYPE_CHECKING:  # or type checkers would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
