"""What every model class of this package has beside that of Transformers."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig

from ..checkpoints import check_quantisation, read_raw_config
from ..gguf_files import find_gguf, into_plain_weights, naming_the_package
from ..inject import inject_attention_sinks
from ..models.registry import architecture_of
from ..settings import CacheDtype, Prefill, SinkSettings

PACKAGE = __name__.partition(".")[0]

ModelT = TypeVar("ModelT", bound="StreamingModel")


class StreamingModel:
    """Mixed in before a model class of Transformers, it puts attention sinks into every model of the class.

    `from_pretrained`, `from_config` of the Auto classes and the class itself accept `attention_sink_size` (default 4),
    `attention_sink_window_size` (default 1020), `attention_sink_prefill` (default "streaming") and
    `attention_sink_cache_dtype` (default: nothing is rounded).
    """

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False for the classes of this package, whose weights have the names of Transformers' own classes.

        Transformers renames weights in checkpoints only for classes without custom code.
        """
        custom = super().is_custom_code()  # type: ignore[misc]  # a class of Transformers comes next
        return bool(custom) and not cls.__module__.startswith(f"{PACKAGE}.")

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        attention_sink_size: int = 4,
        attention_sink_window_size: int = 1020,
        attention_sink_prefill: Prefill = "streaming",
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
        **kwargs: Any,
    ) -> ModelT:
        """Load a checkpoint as Transformers does, into a model with attention sinks.

        `AutoModel.from_pretrained` of this package describes the arguments and the errors. Settings are checked before
        anything is loaded.
        """
        kwargs |= {
            "attention_sink_size": attention_sink_size,
            "attention_sink_window_size": attention_sink_window_size,
            "attention_sink_prefill": attention_sink_prefill,
            "attention_sink_cache_dtype": attention_sink_cache_dtype,
        }
        SinkSettings.pop_from(dict(kwargs))
        name, kwargs = find_gguf(pretrained_model_name_or_path, kwargs)
        kwargs = into_plain_weights(kwargs)
        if not kwargs.get("gguf_file"):
            check_quantisation(name, kwargs.get("config") or read_raw_config(name, kwargs), kwargs)
        with naming_the_package(kwargs):
            loaded: ModelT = super().from_pretrained(name, *model_args, **kwargs)  # type: ignore[misc]  # as above
        return loaded

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        settings = SinkSettings.pop_from(kwargs)
        architecture_of(config)
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]  # as above
        model: Any = self  # a model, by the class that comes next
        inject_attention_sinks(model, *astuple(settings))
