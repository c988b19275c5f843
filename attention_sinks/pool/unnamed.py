"""A conversation without a name, which nobody keeps but whoever holds it."""

from __future__ import annotations

import threading

from ..sessions.store import SessionInUseError
from .talk import Talk


class Unnamed:
    """A conversation without a name. It is in memory as long as somebody holds it."""

    def __init__(self) -> None:
        self._talk: Talk | None = None
        self._is_lost = False
        self._lock = threading.Lock()

    def open(self) -> Unnamed:
        """Take it for one turn."""
        if self._is_lost:
            raise RuntimeError("an error has damaged this conversation; begin another one, or use one with a name.")
        if not self._lock.acquire(blocking=False):
            raise SessionInUseError("the conversation is being answered; wait until that answer has ended.")
        return self

    @property
    def value(self) -> Talk | None:
        return self._talk

    def save(self, value: Talk) -> None:
        self._talk = value

    def close(self, keep: bool = True) -> None:
        self._is_lost = not keep
        self._lock.release()
