"""JSON of strangers, of which nothing is believed that Python would let pass."""

from __future__ import annotations

import json
from typing import Any

DEPTH = 32
"""How deeply lists and objects may be nested, so that nothing that walks through them runs out of stack."""


def parse(text: str) -> Any:
    """Return what `text` says.

    Raises
    ------
    ValueError
        When it is no JSON, is nested too deeply, names something twice, or holds NaN or half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_infinity)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    _check(value, DEPTH)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        raise ValueError("JSON names something twice")
    return known


def _infinity(name: str) -> float:
    """Return an infinite number, which a generation config may have."""
    if name == "NaN":
        raise ValueError("JSON holds NaN")
    return float(name)


def _check(value: Any, levels: int) -> None:
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError is a ValueError
    elif isinstance(value, (dict, list)):
        if not levels:
            raise ValueError("JSON is nested too deeply")
        for item in value:
            _check(item, levels - 1)
        for item in value.values() if isinstance(value, dict) else ():
            _check(item, levels - 1)
