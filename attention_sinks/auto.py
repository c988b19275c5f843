"""The `Auto*` classes of Transformers, with attention sinks injected into what they load."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import transformers
from transformers import AutoConfig

from .inject import inject_attention_sinks
from .models.registry import architecture_of
from .settings import SinkSettings

HUB_ARGUMENTS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
"""Arguments of `from_pretrained` that say where a config is found."""


class _Streaming:
    """Reads the config first, refuses early, loads with Transformers, injects.

    `from_pretrained` and `from_config` take, besides everything Transformers takes:

    attention_sink_size : int, default 4
        First tokens of every stream that are never evicted.
    attention_sink_window_size : int, default 1020
        Most recent tokens a query sees besides itself.
    attention_sink_prefill : {"streaming", "dense"}, default "streaming"
        Whether the tokens of one call see what they would see one by one, or every cached token and each other.

    NotImplementedError is raised from the config alone when the architecture is not supported.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any):
        settings = SinkSettings.pop_from(kwargs)
        config = kwargs.get("config") or _peek(pretrained_model_name_or_path, kwargs)
        if isinstance(config, transformers.PreTrainedConfig):
            architecture_of(config)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with its loading info
        inject_attention_sinks(model, *astuple(settings))
        return loaded

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any):
        settings = SinkSettings.pop_from(kwargs)
        architecture_of(config)
        model = super().from_config(config, **kwargs)
        return inject_attention_sinks(model, *astuple(settings))


def _peek(name: Any, kwargs: dict[str, Any]):
    """The config of a checkpoint, or None where there is none to read (an adapter's folder, say): loading will tell."""
    try:
        return AutoConfig.from_pretrained(name, **{key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs})
    except (OSError, ValueError):
        return None


class AutoModel(_Streaming, transformers.AutoModel):
    __doc__ = _Streaming.__doc__


class AutoModelForCausalLM(_Streaming, transformers.AutoModelForCausalLM):
    __doc__ = _Streaming.__doc__


class AutoModelForSequenceClassification(_Streaming, transformers.AutoModelForSequenceClassification):
    __doc__ = _Streaming.__doc__


class AutoModelForTokenClassification(_Streaming, transformers.AutoModelForTokenClassification):
    __doc__ = _Streaming.__doc__


class AutoModelForQuestionAnswering(_Streaming, transformers.AutoModelForQuestionAnswering):
    __doc__ = _Streaming.__doc__
