"""The `Auto*` classes of Transformers, with attention sinks injected into the models that they load.

`AutoTokenizer` is among them because Transformers' own does not load from the path of a GGUF file alone.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, Generic, Literal, TypeVar, overload

import torch
import transformers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoints import check_checkpoint
from .gguf_files import find_gguf, into_plain_weights, naming_the_package
from .inject import inject_attention_sinks
from .models.registry import architecture_of
from .settings import CacheDtype, Prefill, SinkSettings, cache_dtype_named, check_names


class GenerativeModel(PreTrainedModel, GenerationMixin):
    """What type checkers know of a causal language model before its checkpoint is read. No model is of this class."""

    generate: Any  # by its type in Transformers, pyright refuses to call it


ModelT = TypeVar("ModelT", bound=PreTrainedModel)


class _Streaming(Generic[ModelT]):
    """Auto class of Transformers whose models stream.

    `from_pretrained` and `from_config` take all arguments of Transformers and four more: `attention_sink_size`,
    `attention_sink_window_size`, `attention_sink_prefill` and `attention_sink_cache_dtype`.
    """

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        attention_sink_size: int = ...,
        attention_sink_window_size: int = ...,
        attention_sink_prefill: Prefill = ...,
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = ...,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> ModelT: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        attention_sink_size: int = ...,
        attention_sink_window_size: int = ...,
        attention_sink_prefill: Prefill = ...,
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = ...,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[ModelT, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        attention_sink_size: int = 4,
        attention_sink_window_size: int = 1020,
        attention_sink_prefill: Prefill = "streaming",
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint as Transformers does and inject attention sinks.

        The config is read first, so a model that cannot stream is refused before its weights are loaded, and before
        code of its repository is fetched or run.

        Parameters
        ----------
        pretrained_model_name_or_path : str or os.PathLike
            Name of a repository of the Hugging Face Hub, a folder, or the path of a GGUF file. The weights of a GGUF
            file are unpacked into an ordinary model unless `quantization_config` says otherwise.
        attention_sink_size : int, default 4
            S, the number of first tokens of every stream that are never evicted.
        attention_sink_window_size : int, default 1020
            W, the number of most recent tokens that a query sees besides itself and the sinks.
        attention_sink_prefill : {"streaming", "dense"}, default "streaming"
            With "streaming", the tokens of one call see what they would see one by one. With "dense", they see every
            cached token and each other.
        attention_sink_cache_dtype : torch.dtype or str, optional
            What keys and values are rounded to when they enter a cache: torch.bfloat16, torch.float16, "int8" (8 bits
            a number) or "int8-int4" (8 bits for keys, 4 for values). Default: nothing is rounded.
        *model_args, **kwargs
            All other arguments of Transformers' `from_pretrained`.

        Returns
        -------
        PreTrainedModel
            The model; with `output_loading_info=True`, the model and a dict about its loading.

        Raises
        ------
        NotImplementedError
            When the architecture is not supported.
        ImportError
            When a package is missing that quantised weights or a GGUF file need. The message has the command that
            installs it.
        FileNotFoundError
            When there is no such GGUF file.
        TypeError, ValueError
            When a setting is misspelt or out of range, or a GGUF file cannot be read.
        """
        settings = SinkSettings(
            attention_sink_size,
            attention_sink_window_size,
            attention_sink_prefill,
            cache_dtype_named(attention_sink_cache_dtype),
        )
        check_names(kwargs)
        name, kwargs = find_gguf(pretrained_model_name_or_path, kwargs)
        kwargs = into_plain_weights(check_checkpoint(name, kwargs))
        loaded = super().from_pretrained(name, *model_args, **kwargs)  # type: ignore[misc]  # Transformers' comes next
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        inject_attention_sinks(model, *astuple(settings))
        return loaded

    @classmethod
    def from_config(
        cls,
        config: PreTrainedConfig,
        *,
        attention_sink_size: int = 4,
        attention_sink_window_size: int = 1020,
        attention_sink_prefill: Prefill = "streaming",
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
        **kwargs: Any,
    ) -> ModelT:
        """Make a model with random weights as Transformers does and inject attention sinks.

        Parameters
        ----------
        config : PreTrainedConfig
            The config of the model.
        attention_sink_size : int, default 4
            S, the number of first tokens of every stream that are never evicted.
        attention_sink_window_size : int, default 1020
            W, the number of most recent tokens that a query sees besides itself and the sinks.
        attention_sink_prefill : {"streaming", "dense"}, default "streaming"
            What the tokens of one call see, as in `from_pretrained`.
        attention_sink_cache_dtype : torch.dtype or str, optional
            What keys and values are rounded to, as in `from_pretrained`.
        **kwargs
            All other arguments of Transformers' `from_config`.

        Raises
        ------
        NotImplementedError
            When the architecture is not supported.
        TypeError, ValueError
            When a setting is misspelt or out of range.
        """
        settings = SinkSettings(
            attention_sink_size,
            attention_sink_window_size,
            attention_sink_prefill,
            cache_dtype_named(attention_sink_cache_dtype),
        )
        check_names(kwargs)
        architecture_of(config)
        model: ModelT = super().from_config(config, **kwargs)  # type: ignore[misc]  # as above
        inject_attention_sinks(model, *astuple(settings))
        return model


class AutoModel(_Streaming[PreTrainedModel], transformers.AutoModel):
    __doc__ = _Streaming.__doc__


class AutoModelForCausalLM(  # type: ignore[misc]  # Transformers has a private class in place of GenerativeModel
    _Streaming[GenerativeModel], transformers.AutoModelForCausalLM
):
    __doc__ = _Streaming.__doc__


class AutoModelForSequenceClassification(_Streaming[PreTrainedModel], transformers.AutoModelForSequenceClassification):
    __doc__ = _Streaming.__doc__


class AutoModelForTokenClassification(_Streaming[PreTrainedModel], transformers.AutoModelForTokenClassification):
    __doc__ = _Streaming.__doc__


class AutoModelForQuestionAnswering(_Streaming[PreTrainedModel], transformers.AutoModelForQuestionAnswering):
    __doc__ = _Streaming.__doc__


class AutoTokenizer(transformers.AutoTokenizer):
    """The tokenizers of Transformers. `from_pretrained` also takes the path of a GGUF file."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # Transformers names two subclasses, by names that change
        cls, pretrained_model_name_or_path: Any, *inputs: Any, **kwargs: Any
    ) -> PreTrainedTokenizerBase:
        """Load a tokenizer as Transformers does, from a repository, a folder, or a GGUF file.

        Parameters
        ----------
        pretrained_model_name_or_path : str or os.PathLike
            Name of a repository of the Hugging Face Hub, a folder, or the path of a GGUF file.
        *inputs, **kwargs
            All other arguments of Transformers' `from_pretrained`.

        Returns
        -------
        PreTrainedTokenizerBase
            The tokenizer, of a class of Transformers.

        Raises
        ------
        FileNotFoundError
            When there is no such GGUF file.
        ImportError
            When the package that reads such files is missing.
        ValueError
            When the file is no GGUF file, or one part of several.
        """
        name, kwargs = find_gguf(pretrained_model_name_or_path, kwargs)
        with naming_the_package(kwargs):
            tokenizer: PreTrainedTokenizerBase = super().from_pretrained(name, *inputs, **kwargs)
        return tokenizer
