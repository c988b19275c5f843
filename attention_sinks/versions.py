"""What differs between Transformers releases. No other module of the package asks which release is installed.

Importing this module raises ImportError when the installed Transformers is too old, so the package imports it first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

OLDEST_TRANSFORMERS = "5.17"
"""Older releases break assisted decoding or lack flags that caches need."""

NEWEST_TRANSFORMERS = "5.24"
"""The newest release for which every causal language model is known to be either supported or refused."""

SINCE = {
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), (5, 18)),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), (5, 21)),
    **dict.fromkeys(("exaone", "sarvam_mla", "sarvam_moe"), (5, 24)),
}
"""`config.model_type` -> the first release with which it streams. Older releases cache the keys or positions of these
types in another way, or do not know the type without code from its repository."""


def _check_transformers() -> None:
    """Raise ImportError, with the cure, when the installed Transformers is too old."""
    if Version(transformers.__version__).release < Version(OLDEST_TRANSFORMERS).release:
        raise ImportError(
            f"attention_sinks needs transformers>={OLDEST_TRANSFORMERS}, but {transformers.__version__} is installed; "
            f"run `pip install --upgrade 'transformers>={OLDEST_TRANSFORMERS}'`."
        )


_check_transformers()


def is_newer_than_tested() -> bool:
    """Whether the installed Transformers is a later minor release than the last one that was tested."""
    return transformers_release() > _minor_release(NEWEST_TRANSFORMERS)


def transformers_release() -> tuple[int, int]:
    """Major and minor version of the installed Transformers."""
    return _minor_release(transformers.__version__)


def _minor_release(version: str) -> tuple[int, int]:
    parsed = Version(version)
    return parsed.major, parsed.minor


def check_release_for(model_type: str) -> None:
    """Raise NotImplementedError, with the cure, when `model_type` needs a newer Transformers to stream."""
    if not streams_in_this_release(model_type):
        needed = ".".join(map(str, SINCE[model_type]))
        raise NotImplementedError(
            f"model_type={model_type!r} streams with transformers>={needed}, but {transformers.__version__} is "
            f"installed; call `pip install --upgrade 'transformers>={needed}'`."
        )


def streams_in_this_release(model_type: str) -> bool:
    """Whether the installed Transformers is new enough for `model_type` to stream."""
    return SINCE.get(model_type, (0, 0)) <= transformers_release()


GPTJ_IS_HANDED_POSITION_EMBEDDINGS = transformers_release() >= (5, 24)
"""Whether attention modules of GPT-J and CodeGen receive cosines and sines as an argument and use Transformers'
attention interface. Older releases look cosines and sines up in a table of each module."""


def tokenizers_read_gguf_themselves() -> bool:
    """Whether tokenizers find the vocabulary of a GGUF file without the package `gguf`.

    Since 5.24 they do, and the package is asked for the config alone.
    """
    return find_spec("transformers.integrations.gguf.gguf_tokenizer_mapping") is not None


# ---- the name of the cache

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name that this release gives to the cache, in arguments and outputs. It was `past_key_values` until 5.23."""

OTHER_CACHE_NAME = "past_key_values" if CACHE == "cache" else "cache"
"""What another release calls it."""

BOTH_NAMES_BY_ITSELF = CACHE == "cache"
"""Whether this release's own outputs answer to both names."""

CACHE_NAMES = ("cache", "past_key_values")
"""The names by which a user may pass the cache with every release, the newer one first."""

LAYER_CACHE_NAMES = (*CACHE_NAMES, "layer_past")
"""The names that an attention module may give to the cache. GPT-J and similar models used `layer_past` until 5.23."""


def with_cache_named(arguments: Mapping[str, Any], name: str = CACHE) -> dict[str, Any]:
    """Return `arguments` with the cache under `name`, whichever of its names the caller used.

    Parameters
    ----------
    arguments : mapping of str to Any
        Arguments of a call by name.
    name : str, default `CACHE`
        The name that the cache gets. The default is that of this release.

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


def cache_by_either_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method with a parameter `cache` so that it also accepts the cache as `past_key_values`."""

    @wraps(forward)
    def translated(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **with_cache_named(kwargs, "cache"))

    return translated


def with_both_names(output: Any) -> Any:
    """Return `output` of a model such that both names lead to its cache. Since 5.24, Transformers does this itself."""
    if BOTH_NAMES_BY_ITSELF or not isinstance(output, ModelOutput):
        return output
    if not hasattr(output, CACHE):
        return output
    both = _class_with_both_names(type(output))
    if torch.compiler.is_compiling():  # a graph can make an output but cannot change its class
        return both(**output)
    output.__class__ = both
    return output


def peft_reads(prepare_inputs: Any) -> str:
    """Return the name under which PEFT's own `prepare_inputs_for_generation` looks for the cache among its inputs.

    PEFT 0.21 knows only the old name. With Transformers 5.24 it would not find the cache and would put its prompt
    before every new token.
    """
    return CACHE if CACHE in prepare_inputs.__code__.co_consts else "past_key_values"


class _BothNames(OrderedDict[str, Any]):
    """Mixed in before an output class of Transformers before 5.24, it makes `cache` another name of the old name."""

    past_key_values: Any

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
        return bool(super().__contains__(_former(key)))

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(_former(key), default)

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = super().__reduce__()
        _, args, *rest = reduced
        return _made_with_both_names, (type(self).__mro__[2], *args), *rest


def _former(name: Any) -> Any:
    """Return the name of this release for the cache when `name` is the newer one, else `name`."""
    return CACHE if name == "cache" else name


def _made_with_both_names(output_class: type, *args: Any) -> Any:
    """Make an output of `output_class` with both names; pickled outputs are restored by it."""
    return _class_with_both_names(output_class)(*args)


_CLASSES: dict[type, type] = {}
"""Output class -> the same class with both names."""


def _class_with_both_names(output_class: type) -> type:
    if issubclass(output_class, _BothNames):
        return output_class
    if output_class not in _CLASSES:
        about = {"__module__": output_class.__module__, "__doc__": output_class.__doc__}
        _CLASSES[output_class] = type(output_class.__name__, (_BothNames, output_class), about)
    return _CLASSES[output_class]
