"""Where conversations stand, found by what was said in them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from transformers.utils import logging

from ..chat.messages import Message
from ..sessions.store import SessionInUseError, SessionStore

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a conversation stands.

    Attributes
    ----------
    session : str
        The name of its session.
    turns : int
        How many turns the session has had.
    """

    session: str
    turns: int


class Histories:
    """The places of conversations, each by a key that tells what was said until there.

    Parameters
    ----------
    folder : str, os.PathLike or None
        Where they are kept; None for memory alone.
    expire_after : float, optional
        Seconds after which they are forgotten.
    storage_options : dict, optional
        What fsspec needs besides the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        expire_after: float | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self._places: SessionStore[Place] = SessionStore(
            folder,
            to_file=lambda place: ({}, asdict(place)),
            from_file=lambda tensors, state: Place(str(state["session"]), int(state["turns"])),
            size_of=lambda place: 256,
            max_bytes=None if folder is None else 1 << 20,
            expire_after=expire_after,
            storage_options=storage_options,
        )

    def find(self, key: str) -> Place | None:
        """Return the place with this key, or None where there is none that can be had now."""
        try:
            with self._places.open(key) as opened:
                return opened.value
        except (SessionInUseError, OSError, ValueError):  # whoever asks can have the history read anew
            return None

    def note(self, key: str, place: Place) -> None:
        """Note that `key` is where a conversation stands. If it cannot be noted, the history can be read anew."""
        try:
            with self._places.open(key) as opened:
                opened.save(place)
        except SessionInUseError:  # somebody else notes the same history now
            pass
        except OSError as error:
            logger.warning(f"a history could not be noted ({error}); it will be read anew.")

    def forget(self, key: str) -> None:
        """Forget the place with this key, unless somebody is looking at it."""
        with suppress(SessionInUseError):
            self._places.delete(key)

    def expire(self) -> None:
        """Forget those that have not been used for long."""
        self._places.expire()

    def close(self) -> None:
        """Find no more."""
        self._places.close()


def keys_of(beginning: str, messages: Sequence[Message]) -> Iterator[str]:
    """Yield, for each message, the key of the history that ends with it.

    The keys are a chain of hashes, which begins with `beginning`: whose conversation it is, and its settings.
    """
    key = beginning
    for message in messages:
        key = digest(key, _told(message))
        yield key


def digest(*told: Any) -> str:
    """Return a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _told(message: Message) -> list[Any]:
    """Return what of a message a client sends back as it was."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
    text = (message.get("content") or "").strip()  # clients may trim what they show and send back
    return [message["role"], text, message.get("name"), message.get("tool_call_id"), calls]
