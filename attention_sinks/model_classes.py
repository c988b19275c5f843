"""Model classes of the architectures of version 0.4.0, born with attention sinks."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import transformers
from transformers import (
    FalconPreTrainedModel,
    GPTJPreTrainedModel,
    GPTNeoXPreTrainedModel,
    LlamaPreTrainedModel,
    MistralPreTrainedModel,
    MptPreTrainedModel,
    PreTrainedConfig,
)

from .inject import inject_attention_sinks
from .models.registry import architecture_of
from .settings import SinkSettings


class StreamingModel:
    """Mixed in before a Transformers model class; takes the `attention_sink_*` arguments wherever it is made.

    `from_pretrained`, `from_config` of the Auto classes and the class itself accept `attention_sink_size` (default 4),
    `attention_sink_window_size` (default 1020) and `attention_sink_prefill` (default "streaming").
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not here: weights are named as in the class of Transformers, also where it renames them in checkpoints."""
        return super().is_custom_code() and not cls.__module__.startswith(f"{__package__}.")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        SinkSettings.pop_from(dict(kwargs))  # refuse what is wrong before anything is loaded
        return super().from_pretrained(*args, **kwargs)

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        settings = SinkSettings.pop_from(kwargs)
        architecture_of(config)
        super().__init__(config, *args, **kwargs)
        inject_attention_sinks(self, *astuple(settings))


class FalconModel(StreamingModel, transformers.FalconModel): ...


class FalconForCausalLM(StreamingModel, transformers.FalconForCausalLM): ...


class FalconForSequenceClassification(StreamingModel, transformers.FalconForSequenceClassification): ...


class FalconForTokenClassification(StreamingModel, transformers.FalconForTokenClassification): ...


class FalconForQuestionAnswering(StreamingModel, transformers.FalconForQuestionAnswering): ...


class GPTNeoXModel(StreamingModel, transformers.GPTNeoXModel): ...


class GPTNeoXForCausalLM(StreamingModel, transformers.GPTNeoXForCausalLM): ...


class GPTNeoXForSequenceClassification(StreamingModel, transformers.GPTNeoXForSequenceClassification): ...


class GPTNeoXForTokenClassification(StreamingModel, transformers.GPTNeoXForTokenClassification): ...


class GPTNeoXForQuestionAnswering(StreamingModel, transformers.GPTNeoXForQuestionAnswering): ...


class GPTJModel(StreamingModel, transformers.GPTJModel): ...


class GPTJForCausalLM(StreamingModel, transformers.GPTJForCausalLM): ...


class GPTJForSequenceClassification(StreamingModel, transformers.GPTJForSequenceClassification): ...


class GPTJForQuestionAnswering(StreamingModel, transformers.GPTJForQuestionAnswering): ...


class LlamaModel(StreamingModel, transformers.LlamaModel): ...


class LlamaForCausalLM(StreamingModel, transformers.LlamaForCausalLM): ...


class LlamaForSequenceClassification(StreamingModel, transformers.LlamaForSequenceClassification): ...


class LlamaForTokenClassification(StreamingModel, transformers.LlamaForTokenClassification): ...


class LlamaForQuestionAnswering(StreamingModel, transformers.LlamaForQuestionAnswering): ...


class MistralModel(StreamingModel, transformers.MistralModel): ...


class MistralForCausalLM(StreamingModel, transformers.MistralForCausalLM): ...


class MistralForSequenceClassification(StreamingModel, transformers.MistralForSequenceClassification): ...


class MistralForTokenClassification(StreamingModel, transformers.MistralForTokenClassification): ...


class MistralForQuestionAnswering(StreamingModel, transformers.MistralForQuestionAnswering): ...


class MptModel(StreamingModel, transformers.MptModel): ...


class MptForCausalLM(StreamingModel, transformers.MptForCausalLM): ...


class MptForSequenceClassification(StreamingModel, transformers.MptForSequenceClassification): ...


class MptForTokenClassification(StreamingModel, transformers.MptForTokenClassification): ...


class MptForQuestionAnswering(StreamingModel, transformers.MptForQuestionAnswering): ...


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
