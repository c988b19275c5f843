"""The settings that a user chooses. They are checked once, here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from .plan.reach import Reach

Prefill = Literal["streaming", "dense"]
"""The values of `attention_sink_prefill`."""

PREFILL_MODES: tuple[Prefill, ...] = get_args(Prefill)

CacheDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int8-int4"]
"""The names of what `attention_sink_cache_dtype` may be. A torch dtype has the name of its own."""

CACHE_DTYPES: tuple[CacheDtype, ...] = get_args(CacheDtype)

ARGUMENTS = {
    "attention_sink_size": "sink_size",
    "attention_sink_window_size": "window_size",
    "attention_sink_prefill": "prefill",
    "attention_sink_cache_dtype": "cache_dtype",
}
"""Argument of the public functions -> name of the setting."""


@dataclass(frozen=True)
class SinkSettings:
    """How many tokens a stream keeps and how the tokens of one call see each other.

    Parameters
    ----------
    sink_size : int, default 4
        S, the number of first tokens of a stream that are never evicted. 0 gives plain window attention.
    window_size : int, default 1020
        W, the number of most recent tokens that a query sees besides itself and the sinks, at least 1.
    prefill : {"streaming", "dense"}, default "streaming"
        With "streaming", a call of n tokens equals n calls of one token. With "dense", the tokens of one call also see
        every cached token and each other, as in attention_sinks 0.4.0.
    cache_dtype : {"auto", "float32", "bfloat16", "float16", "int8", "int8-int4"}, default "auto"
        What keys and values are rounded to when they enter the cache. With "auto" the cache keeps them as the model
        made them. A torch dtype stands for its name, None for "auto".

    Raises
    ------
    TypeError
        When a size is not an int.
    ValueError
        When a size is too small, or `prefill` or `cache_dtype` is unknown.
    """

    sink_size: int = 4
    window_size: int = 1020
    prefill: Prefill = "streaming"
    cache_dtype: CacheDtype = "auto"

    def __post_init__(self) -> None:
        _check_count("attention_sink_size", self.sink_size, minimum=0, cure="use 0 for plain window attention")
        _check_count("attention_sink_window_size", self.window_size, minimum=1, cure="keep at least one recent token")
        if self.prefill not in PREFILL_MODES:
            raise ValueError(
                f"attention_sink_prefill={self.prefill!r} is unknown; choose one of {', '.join(PREFILL_MODES)}."
            )
        object.__setattr__(self, "cache_dtype", cache_dtype_named(self.cache_dtype))

    @classmethod
    def pop_from(cls, kwargs: dict[str, Any]) -> SinkSettings:
        """Take the `attention_sink_*` arguments out of `kwargs`.

        Raises
        ------
        TypeError
            When an argument is misspelt.
        """
        settings = {name: kwargs.pop(argument) for argument, name in ARGUMENTS.items() if argument in kwargs}
        check_names(kwargs)
        return cls(**settings)

    @property
    def reach(self) -> Reach:
        """The tokens that the queries of a layer with sinks see."""
        return Reach(self.sink_size, self.window_size, self.prefill == "dense")

    @property
    def visible_size(self) -> int:
        """The most keys that a query ever sees: S + W + 1, for sinks, window and its own."""
        return self.sink_size + self.window_size + 1


def cache_dtype_named(value: Any) -> CacheDtype:
    """Return what `attention_sink_cache_dtype=value` stands for; ValueError when it is unknown."""
    name = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else "auto" if value is None else value
    for known in CACHE_DTYPES:
        if name == known:
            return known
    raise ValueError(f"attention_sink_cache_dtype={value!r} is unknown; choose one of {', '.join(CACHE_DTYPES)}.")


def check_names(kwargs: dict[str, Any]) -> None:
    """Raise TypeError when `kwargs` has a name like those of our arguments that is none of them."""
    for name in kwargs:
        if name.startswith("attention_sink") and name not in ARGUMENTS:
            raise TypeError(f"{name!r} is not an argument of attention_sinks; it knows {', '.join(ARGUMENTS)}.")


def _check_count(name: str, value: Any, minimum: int, cure: str) -> None:
    """Raise TypeError when `value` is not an int and ValueError when it is below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int, not {type(value).__name__}; pass a Python int.")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}; {cure}.")
