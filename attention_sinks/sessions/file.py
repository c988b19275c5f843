"""What the file of one session says: whose it is, when it was saved, and its value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from ..cache.header import MOST_BYTES
from ..cache.schema import Record, checked
from ..cache.storage import decode, decode_state, encode
from ..cache.strict_json import parse

STATE = "state"
"""The tensor that has the value's state as JSON. There it can be long, and no list of sessions has to read it."""

VALUE = "value."
"""What comes before the names of the value's own tensors."""


class SessionState(Record):
    """What the header of the file says besides its tensors."""

    kind: Literal["Session"]
    name: str
    saved: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Header:
    """Whose file it is, when it was saved (seconds since 1970), and what tells its content from any other."""

    name: str
    saved: float
    version: str


def encode_session(name: str, saved: float, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> bytes:
    """Return the content of the file of the session `name`, whose value is `tensors` and `state`.

    Raises
    ------
    ValueError
        When `state` holds what cannot be loaded again: NaN or half a character.
    """
    text = json.dumps(state)
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(f"state would hold what cannot be loaded again ({error!s:.200}); use other values.") from error
    named = {f"{VALUE}{key}": tensor for key, tensor in tensors.items()}
    named[STATE] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return encode(named, {"kind": "Session", "name": name, "saved": saved})


def decode_session(file: BufferedReader | BytesIO, size: int) -> tuple[Header, dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `encode_session` was given, from a file of `size` bytes, all of which are checked.

    Raises
    ------
    ValueError
        When the file is damaged or of another kind.
    """
    _, version = decode_state(file, size)
    file.seek(0)
    tensors, facts = decode(file, size)
    saved = checked(SessionState, facts)
    text = tensors.pop(STATE, None)
    if text is None or not all(key.startswith(VALUE) for key in tensors):
        raise ValueError("holds a session that save() does not write; use an intact copy.")
    value = {key[len(VALUE) :]: tensor for key, tensor in tensors.items()}
    return Header(saved.name, saved.saved, version), value, _state(text)


def _state(text: torch.Tensor) -> dict[str, Any]:
    try:
        state = parse(text.view(torch.uint8).numpy().tobytes().decode())
    except ValueError as error:
        raise ValueError(f"holds a state that save() does not write ({error!s:.200}); use an intact copy.") from error
    if not isinstance(state, dict):
        raise ValueError("holds a state that save() does not write; use an intact copy.")
    return state


def header_size(start: bytes) -> int:
    """Return how many of the first bytes `header_of` needs, when the file begins with these."""
    return min(8 + int.from_bytes(start[:8], "little"), 8 + MOST_BYTES)


def header_of(start: bytes) -> Header:
    """Return what the file says that begins with `start`. That its tensors are in order is not checked.

    Raises
    ------
    ValueError
        When this is not the beginning of the file of a session.
    """
    facts, version = decode_state(BytesIO(start), 8 + MOST_BYTES)
    saved = checked(SessionState, facts)
    return Header(saved.name, saved.saved, version)
