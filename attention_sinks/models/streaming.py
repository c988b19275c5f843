"""What the model classes of all architectures share: they are born with attention sinks."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from transformers import PreTrainedConfig

from ..settings import SinkSettings


class StreamingModel:
    """Mixed in before a Transformers model class; takes the `attention_sink_*` arguments wherever it is made.

    `from_pretrained`, `from_config` of the Auto classes and the class itself accept `attention_sink_size` (default 4),
    `attention_sink_window_size` (default 1020) and `attention_sink_prefill` (default "streaming").
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not here: weights are named as in the class of Transformers, also where it renames them in checkpoints."""
        return super().is_custom_code() and not cls.__module__.startswith(__package__)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        SinkSettings.pop_from(dict(kwargs))  # refuse what is wrong before anything is loaded
        return super().from_pretrained(*args, **kwargs)

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        from ..inject import inject_attention_sinks
        from .registry import architecture_of  # the table of architectures imports the modules of this folder

        settings = SinkSettings.pop_from(kwargs)
        architecture_of(config)
        super().__init__(config, *args, **kwargs)
        inject_attention_sinks(self, *astuple(settings))
