"""Values in memory: those of open sessions, and of the others those that were used last."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

ValueT = TypeVar("ValueT")


class SessionInUseError(RuntimeError):
    """A session is open somewhere else: in another thread, another process or on another machine."""

    @classmethod
    def of(cls, name: str) -> SessionInUseError:
        """Return the error about the session of this name."""
        return cls(f"the session {name!r:.80} is open already; wait until it is closed, then call open() again.")


@dataclass(frozen=True)
class Kept(Generic[ValueT]):
    """A value as it was saved or read, with the version of its file, when it was saved, and its size in bytes."""

    value: ValueT
    version: str
    saved: float
    nbytes: int


class Borrower(Protocol[ValueT]):
    """An open session. It has the value of its name, if there is one, and the memory has it no longer."""

    name: str
    kept: Kept[ValueT] | None


class SessionMemory(Generic[ValueT]):
    """Values by the name of their session, for any number of threads.

    Parameters
    ----------
    max_bytes : int or None
        Beyond it, values go that were used least recently, but none of an open session. None is no bound.
    """

    def __init__(self, max_bytes: int | None):
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._kept: OrderedDict[str, Kept[ValueT]] = OrderedDict()
        # One that its user has dropped is open no longer. Its value may be anything by then, and goes with it.
        self._open: weakref.WeakValueDictionary[str, Borrower[ValueT]] = weakref.WeakValueDictionary()
        self._is_closed = False

    def enter(self, session: Borrower[ValueT]) -> None:
        """Note that `session` is open.

        Raises
        ------
        SessionInUseError
            When another of its name is.
        RuntimeError
            When the memory is closed.
        """
        with self._mutex:
            if self._is_closed:
                raise RuntimeError("this store of sessions is closed; make another.")
            if session.name in self._open:
                raise SessionInUseError.of(session.name)
            self._open[session.name] = session

    def is_open(self, session: Borrower[ValueT]) -> bool:
        """Return whether `session` has entered and not left."""
        with self._mutex:
            return self._open.get(session.name) is session

    def lend(self, session: Borrower[ValueT], kept: Kept[ValueT] | None) -> None:
        """Let `session`, which is open, have `kept` as the value of its name, in place of any that is here."""
        with self._mutex:
            session.kept = kept
            self._kept.pop(session.name, None)
            self._shrink()

    def take_back(self, session: Borrower[ValueT], keep: bool) -> None:
        """Take from `session`, which is open, what it has, as the value used last, or forget it."""
        with self._mutex:
            if keep and session.kept is not None and not self._is_closed:
                self._kept[session.name] = session.kept
                self._kept.move_to_end(session.name)
            session.kept = None
            self._shrink()

    def leave(self, session: Borrower[ValueT]) -> None:
        """Note that `session`, which is open, is so no longer."""
        with self._mutex:
            self._open.pop(session.name, None)

    def get(self, name: str) -> Kept[ValueT] | None:
        """Return the value of a session that is not open, if it is here."""
        with self._mutex:
            return self._kept.get(name)

    def forget(self, name: str) -> None:
        """Keep the value of this session no longer."""
        with self._mutex:
            self._kept.pop(name, None)

    def all(self) -> dict[str, Kept[ValueT]]:
        """Return all values by name, those of open sessions too."""
        with self._mutex:
            lent = {name: session.kept for name, session in self._open.items()}
            return {**self._kept, **{name: kept for name, kept in lent.items() if kept is not None}}

    def close(self) -> None:
        """Forget all values but those of open sessions, and let no session enter."""
        with self._mutex:
            self._is_closed = True
            self._kept = OrderedDict()

    def _shrink(self) -> None:
        if self._max_bytes is None:
            return
        lent = [session.kept for session in self._open.values() if session.kept is not None]
        total = sum(kept.nbytes for kept in (*self._kept.values(), *lent))
        while self._kept and total > self._max_bytes:
            _, kept = self._kept.popitem(last=False)
            total -= kept.nbytes
