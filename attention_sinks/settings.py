"""The three numbers and words a user chooses, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan.reach import Reach

PREFILL_MODES = ("streaming", "dense")


@dataclass(frozen=True)
class SinkSettings:
    """How many tokens a stream keeps and what a long call means.

    Parameters
    ----------
    sink_size : int, default 4
        First tokens of a stream that are never evicted; 0 gives plain window attention.
    window_size : int, default 1020
        Most recent tokens a query sees besides itself and the sinks; at least 1.
    prefill : {"streaming", "dense"}, default "streaming"
        "streaming": a call of n tokens equals n calls of one token. "dense": the tokens of one call also see every
        cached token and each other, as in attention_sinks 0.4.0.
    """

    sink_size: int = 4
    window_size: int = 1020
    prefill: str = "streaming"

    def __post_init__(self) -> None:
        _check_count("attention_sink_size", self.sink_size, minimum=0, cure="use 0 for plain window attention")
        _check_count("attention_sink_window_size", self.window_size, minimum=1, cure="keep at least one recent token")
        if self.prefill not in PREFILL_MODES:
            raise ValueError(
                f"attention_sink_prefill={self.prefill!r} is unknown; choose one of {', '.join(PREFILL_MODES)}."
            )

    @classmethod
    def pop_from(cls, kwargs: dict[str, Any]) -> SinkSettings:
        """Take the `attention_sink_*` arguments out of `kwargs`; a misspelt one is an error, not ignored."""
        names = {
            "attention_sink_size": "sink_size",
            "attention_sink_window_size": "window_size",
            "attention_sink_prefill": "prefill",
        }
        given = {names.get(key, key): kwargs.pop(key) for key in list(kwargs) if key.startswith("attention_sink")}
        for key in given:
            if key not in names.values():
                raise TypeError(f"{key!r} is not an argument of attention_sinks; it knows {', '.join(names)}.")
        return cls(**given)

    @property
    def reach(self) -> Reach:
        """What the queries of a layer with sinks see."""
        return Reach(self.sink_size, self.window_size, self.prefill == "dense")

    @property
    def visible_size(self) -> int:
        """Most keys a query ever sees: sinks, window and itself."""
        return self.sink_size + self.window_size + 1


def _check_count(name: str, value: Any, minimum: int, cure: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int, not {type(value).__name__}; pass a Python int.")
    if value < minimum:
        raise ValueError(f"{name}={value} must be at least {minimum}; {cure}.")
