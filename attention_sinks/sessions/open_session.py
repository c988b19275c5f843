"""One session while it is open."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Generic

from .folder import SessionLock
from .memory import Kept, SessionInUseError, SessionMemory, ValueT


class OpenSession(Generic[ValueT]):
    """A session that is open, which nobody else can open meanwhile. `SessionStore.open` makes it.

    As a context manager it closes itself; after an exception, with `keep=False`. One that is dropped without being
    closed counts as closed with `keep=False`, in a folder far away after a minute.

    Attributes
    ----------
    name : str
        Its name.
    kept : Kept or None
        What the store's memory has lent to it.
    """

    def __init__(
        self,
        name: str,
        memory: SessionMemory[ValueT],
        lock: SessionLock | None,
        write: Callable[[str, ValueT, SessionLock | None], Kept[ValueT]],
    ):
        self.name = name
        self.kept: Kept[ValueT] | None = None
        self._memory, self._lock, self._write = memory, lock, write

    @property
    def value(self) -> ValueT | None:
        """What was saved last, or None when nobody has saved this session or it has expired."""
        return None if self.kept is None else self.kept.value

    def take(self) -> None:
        """Become the only one of this name that is open. The store calls it.

        Raises
        ------
        SessionInUseError
            When there is another.
        """
        self._memory.enter(self)
        if self._lock is not None and not self._lock.acquire():
            raise SessionInUseError.of(self.name)

    def save(self, value: ValueT) -> None:
        """Make `value` the current one. When this returns, it is in the folder.

        Raises
        ------
        OSError
            When the file cannot be written. What was saved before is then untouched.
        ValueError
            When the value holds what cannot be loaded again.
        SessionInUseError
            When its lock was lost, which can happen in a folder far away only.
        RuntimeError
            When the session is closed.
        """
        if not self._memory.is_open(self):
            raise RuntimeError(f"the session {self.name!r:.80} is closed; call open() to save it again.")
        self._memory.lend(self, self._write(self.name, value, self._lock))

    def close(self, keep: bool = True) -> None:
        """Let others open the session. Closing it again does nothing.

        Parameters
        ----------
        keep : bool, default True
            Whether the value, which must be as it was saved or opened, stays in memory. If not, the next to open the
            session reads its file; without a folder, the session is gone.
        """
        if not self._memory.is_open(self):
            return
        self._memory.take_back(self, keep)
        try:
            if self._lock is not None:
                self._lock.release()
        finally:
            self._memory.leave(self)

    def __enter__(self) -> OpenSession[ValueT]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=error is None)
