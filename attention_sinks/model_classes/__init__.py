# ruff: noqa: F403, F405  # `__all__` says which names these are
"""Model classes for the architectures of version 0.4.0, whose models have attention sinks from the start.

Each is loaded when somebody asks for it, because it brings the modelling code of its architecture.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .falcon import *
    from .gpt_neox import *
    from .gptj import *
    from .llama import *
    from .mistral import *
    from .mpt import *

FAMILIES = {
    "Falcon": "falcon",
    "GPTJ": "gptj",
    "GPTNeoX": "gpt_neox",
    "Llama": "llama",
    "Mistral": "mistral",
    "Mpt": "mpt",
}
"""How the names of classes begin -> the module that has these classes."""

__all__ = [
    "FalconForCausalLM",
    "FalconForQuestionAnswering",
    "FalconForSequenceClassification",
    "FalconForTokenClassification",
    "FalconModel",
    "FalconPreTrainedModel",
    "GPTJForCausalLM",
    "GPTJForQuestionAnswering",
    "GPTJForSequenceClassification",
    "GPTJModel",
    "GPTJPreTrainedModel",
    "GPTNeoXForCausalLM",
    "GPTNeoXForQuestionAnswering",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXModel",
    "GPTNeoXPreTrainedModel",
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaModel",
    "LlamaPreTrainedModel",
    "MistralForCausalLM",
    "MistralForQuestionAnswering",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralModel",
    "MistralPreTrainedModel",
    "MptForCausalLM",
    "MptForQuestionAnswering",
    "MptForSequenceClassification",
    "MptForTokenClassification",
    "MptModel",
    "MptPreTrainedModel",
]

if not TYPE_CHECKING:  # or type checkers would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name in __all__:
            module = next(module for prefix, module in FAMILIES.items() if name.startswith(prefix))
            return getattr(import_module(f".{module}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
