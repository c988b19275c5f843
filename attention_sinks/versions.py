"""What differs between Transformers versions; nothing else in the package asks for a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

OLDEST_TRANSFORMERS = "5.17"
"""Older releases break assisted decoding or lack flags that caches need."""

NEWEST_TRANSFORMERS = "5.24"
"""The newest release whose causal language models have all been looked at: each is supported or refused."""

SINCE = {
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), (5, 18)),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), (5, 21)),
    **dict.fromkeys(("exaone", "sarvam_mla", "sarvam_moe"), (5, 24)),
}
"""The first release with which these types stream. Older ones cache their keys or positions in another way, or know
them only by the code of their repositories."""


def check_transformers() -> None:
    """ImportError, with the cure, when the installed Transformers is too old."""
    if Version(transformers.__version__).release < Version(OLDEST_TRANSFORMERS).release:
        raise ImportError(
            f"attention_sinks needs transformers>={OLDEST_TRANSFORMERS}, but {transformers.__version__} is installed; "
            f"run `pip install --upgrade 'transformers>={OLDEST_TRANSFORMERS}'`."
        )


def is_newer_than_tested() -> bool:
    """Whether the installed Transformers is a later minor release than the last one that was tested."""
    return transformers_release() > Version(NEWEST_TRANSFORMERS).release[:2]


def transformers_release() -> tuple[int, int]:
    """Major and minor version of the installed Transformers."""
    return Version(transformers.__version__).release[:2]


def check_release_for(model_type: str) -> None:
    """NotImplementedError, with the cure, when `model_type` needs a newer Transformers to stream."""
    if not streams_in_this_release(model_type):
        needed = ".".join(map(str, SINCE[model_type]))
        raise NotImplementedError(
            f"model_type={model_type!r} streams with transformers>={needed}, but {transformers.__version__} is "
            f"installed; call `pip install --upgrade 'transformers>={needed}'`."
        )


def streams_in_this_release(model_type: str) -> bool:
    return SINCE.get(model_type, (0, 0)) <= transformers_release()


def is_handed_position_embeddings(attention: type) -> bool:
    """Whether attention modules of this class are handed cosines and sines. Those of GPT-J and CodeGen are since 5.24,
    and go through Transformers' attention interface; before, they looked them up in a table of their own."""
    return "position_embeddings" in signature(attention.forward).parameters


# ---- the name of the cache

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this release calls the cache, among arguments and in outputs: `past_key_values` until 5.23."""

OTHER_CACHE_NAME = "past_key_values" if CACHE == "cache" else "cache"
"""What another release calls it."""

BOTH_NAMES_BY_ITSELF = CACHE == "cache"
"""Whether this release's own outputs answer to both names."""

CACHE_NAMES = ("cache", "past_key_values")
"""What a user may call the cache with every release, the newer name first."""

LAYER_CACHE_NAMES = (*CACHE_NAMES, "layer_past")
"""What an attention module may call the cache; `layer_past` is GPT-J's and its like, until 5.23."""


def with_cache_named(arguments: Mapping[str, Any], name: str = CACHE) -> dict[str, Any]:
    """`arguments` with the cache, whatever the caller called it, under `name`, by default that of this release.

    Raises
    ------
    ValueError
        When both names are given.
    """
    given = [arguments[known] for known in CACHE_NAMES if arguments.get(known) is not None]
    if len(given) > 1:
        raise ValueError(
            f"cache={type(given[0]).__name__} and past_key_values={type(given[1]).__name__} are both given, and are "
            "two names of one argument; pass cache alone."
        )
    named = {known: value for known, value in arguments.items() if known not in CACHE_NAMES}
    if len(named) < len(arguments):
        named[name] = given[0] if given else None
    return named


def cache_by_either_name(forward: Callable) -> Callable:
    """Decorates a method that calls the cache `cache`, so that it may be called with `past_key_values` as well."""

    @wraps(forward)
    def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **with_cache_named(kwargs, "cache"))

    return translated


def with_both_names(output: Any) -> Any:
    """`output` of a model, whose cache answers to both names. Since 5.24 Transformers sees to that."""
    if CACHE == "cache" or not isinstance(output, ModelOutput):
        return output
    if CACHE not in output and CACHE not in output.__dataclass_fields__:
        return output
    both = _class_with_both_names(type(output))
    if torch.compiler.is_compiling():  # a graph makes outputs, but gives them no other class
        return both(**output)
    output.__class__ = both
    return output


def peft_reads(prepare_inputs: Any) -> str:
    """The name by which PEFT's own `prepare_inputs_for_generation` finds the cache among the inputs it is handed.

    PEFT 0.21 knows the old name alone: with Transformers 5.24 it does not find the cache and puts its prompt before
    every new token.
    """
    return CACHE if CACHE in prepare_inputs.__code__.co_consts else "past_key_values"


class _BothNames:
    """What an output class of Transformers before 5.24 lacks to answer to `cache`."""

    @property
    def cache(self) -> Any:
        return self.past_key_values

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_former(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(_former(key), value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(_former(name), value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_former(key))

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_former(key), default)

    def __reduce__(self):
        _, args, *rest = super().__reduce__()
        return _made_with_both_names, (type(self).__mro__[2], *args), *rest


def _former(name: Any) -> Any:
    return CACHE if name == "cache" else name


def _made_with_both_names(output_class: type, *args: Any) -> Any:
    return _class_with_both_names(output_class)(*args)


_CLASSES: dict[type, type] = {}


def _class_with_both_names(output_class: type) -> type:
    if issubclass(output_class, _BothNames):
        return output_class
    if output_class not in _CLASSES:
        about = {"__module__": output_class.__module__, "__doc__": output_class.__doc__}
        _CLASSES[output_class] = type(output_class.__name__, (_BothNames, output_class), about)
    return _CLASSES[output_class]
