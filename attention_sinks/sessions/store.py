"""Conversations by name: those used last in memory, all of them in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Generic

import torch

from ..cache.files import naming
from .files import SessionFiles, check_name
from .folder import SessionLock, folder_at
from .memory import Kept, SessionInUseError, SessionMemory, ValueT
from .open_session import OpenSession

__all__ = ["OpenSession", "SessionInUseError", "SessionInfo", "SessionStore"]


@dataclass(frozen=True)
class SessionInfo:
    """What a list says of a session.

    Attributes
    ----------
    name : str
        Its name.
    nbytes : int
        The size of its file in bytes; without a folder, that of its value.
    used : datetime
        When it was last saved, in UTC.
    in_memory : bool
        Whether this store has its value in memory, kept or open.
    """

    name: str
    nbytes: int
    used: datetime
    in_memory: bool


class SessionStore(Generic[ValueT]):
    """Conversations by name: those used last in memory, up to a bound in bytes, all of them in a folder.

    A session is locked only while it is open, as a rule for one turn, so any process that uses the folder can have the
    next. A value in memory is used only while its file is the one it was saved as or read from. All methods may be
    called from any thread.

    Parameters
    ----------
    folder : str, os.PathLike or None
        A local path, or a URL that fsspec knows, such as `s3://bucket/chats`. It is made where there is none. None
        keeps sessions in memory alone, and nothing then outlives this store.
    to_file : callable
        Takes a value and returns its tensors by name, and its state, which JSON can hold.
    from_file : callable
        Takes what `to_file` returned, the tensors on the CPU, and returns the value. They belong to the value alone.
    size_of : callable
        Takes a value and returns how many bytes of memory it has.
    max_bytes : int, optional
        How many bytes the values in memory may have, those of open sessions included. Beyond it, those used least
        recently go, but none of a session that is open. By default there is no bound.
    expire_after : float, optional
        A session that was not saved for so many seconds counts as deleted. By default sessions stay.
    storage_options : dict, optional
        What fsspec needs besides the URL.

    Raises
    ------
    OSError
        When the folder cannot be written.
    ValueError
        When a bound is not positive, `max_bytes` is given without a folder, which would lose sessions, or
        `storage_options` without a URL.
    ImportError
        When the package for such URLs is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        to_file: Callable[[ValueT], tuple[dict[str, torch.Tensor], dict[str, Any]]],
        from_file: Callable[[dict[str, torch.Tensor], dict[str, Any]], ValueT],
        size_of: Callable[[ValueT], int],
        max_bytes: int | None = None,
        expire_after: float | None = None,
        storage_options: dict[str, Any] | None = None,
    ):
        _check_bounds(folder, max_bytes, expire_after, storage_options)
        self._to_file, self._from_file, self._size_of = to_file, from_file, size_of
        self._expire_after = expire_after
        self._files = None if folder is None else SessionFiles(folder_at(folder, storage_options))
        self._memory: SessionMemory[ValueT] = SessionMemory(max_bytes)

    # ---- one session

    def open(self, name: str) -> OpenSession[ValueT]:
        """Open a session, which need not exist, for its user alone.

        Parameters
        ----------
        name : str
            Of 1 to 512 characters.

        Raises
        ------
        SessionInUseError
            At once, when it is open already, here or elsewhere.
        OSError
            When its file cannot be read.
        ValueError
            When its file is damaged, or the name is empty or too long.
        TypeError
            When the name is no str.
        RuntimeError
            When the store is closed.
        """
        session = self._session(name)
        try:
            session.take()
            self._memory.lend(session, self._current(name))
        except BaseException:
            session.close()  # nobody has seen its value
            raise
        return session

    def delete(self, name: str) -> bool:
        """Delete a session, whose file may be damaged, and return whether there was one.

        Raises
        ------
        SessionInUseError
            When it is open.
        OSError
            When its file cannot be removed.
        """
        session = self._session(name)
        try:
            session.take()
            return self._remove(name)
        finally:
            session.close()

    def _session(self, name: str) -> OpenSession[ValueT]:
        """Return a session that has not been taken yet."""
        check_name(name)
        lock = None if self._files is None else self._files.lock(name)
        return OpenSession(name, self._memory, lock, self._write)

    def _current(self, name: str) -> Kept[ValueT] | None:
        """Return the value of a session that is taken: that in memory when it is current; None when there is none."""
        kept = self._memory.get(name)
        if self._files is None:
            return None if kept is None or self._is_expired(kept.saved) else kept
        if kept is not None:
            header = self._files.header(name)
            if header is None or self._is_expired(header.saved):
                return None
            if header.version == kept.version:
                return kept
        read = self._files.read(name)
        if read is None or self._is_expired(read[0].saved):
            return None
        header, tensors, state = read
        with naming(self._files.path(name)):
            value = self._from_file(tensors, state)
        return Kept(value, header.version, header.saved, self._size_of(value))

    def _write(self, name: str, value: ValueT, lock: SessionLock | None) -> Kept[ValueT]:
        """Write `value` to the folder, when `lock` is still held, and return it as the one that is there."""
        nbytes = self._size_of(value)
        if self._files is None or lock is None:
            return Kept(value, "", time.time(), nbytes)
        tensors, state = self._to_file(value)
        if not lock.is_locked:
            raise SessionInUseError(
                f"the session {name!r:.80} was out of reach for longer than its lock lasts, and may be open elsewhere; "
                "close it with keep=False and call open() again."
            )
        header = self._files.write(name, tensors, state)
        return Kept(value, header.version, header.saved, nbytes)

    def _remove(self, name: str) -> bool:
        """Delete a session that is taken, and return whether there was one."""
        existed = self._memory.get(name) is not None
        if self._files is not None:
            existed = self._files.remove(name)
        self._memory.forget(name)
        return existed

    # ---- all sessions

    def list(self) -> Sequence[SessionInfo]:
        """Return all sessions, those used last first. A damaged file is warned of and left out.

        Raises
        ------
        OSError
            When the folder cannot be read.
        """
        return [info for info in self._all() if not self._is_expired(info.used.timestamp())]

    def expire(self) -> Sequence[str]:
        """Delete the sessions that were not saved for `expire_after` seconds and are not open. Return their names.

        Raises
        ------
        OSError
            When the folder cannot be read, or a file cannot be removed.
        """
        old = [info.name for info in self._all() if self._is_expired(info.used.timestamp())]
        return [name for name in old if self._expire(name)]

    def _expire(self, name: str) -> bool:
        """Delete a session unless somebody has it open or has saved it by now, and return whether it was deleted."""
        session = self._session(name)
        try:
            session.take()
            used = self._used(name)
            return used is not None and self._is_expired(used) and self._remove(name)
        except SessionInUseError:
            return False
        finally:
            session.close()

    def _used(self, name: str) -> float | None:
        """Return when a session that is taken was last saved, or None when there is none."""
        found = self._memory.get(name) if self._files is None else self._files.header(name)
        return None if found is None else found.saved

    def _all(self) -> Sequence[SessionInfo]:
        here = self._memory.all()
        if self._files is None:
            found = [(name, kept.nbytes, kept.saved) for name, kept in here.items()]
        else:
            found = [(header.name, nbytes, header.saved) for header, nbytes in self._files.headers()]
        infos = [
            SessionInfo(name, nbytes, datetime.fromtimestamp(saved, timezone.utc), name in here)
            for name, nbytes, saved in found
        ]
        return sorted(infos, key=lambda info: info.used, reverse=True)

    def _is_expired(self, saved: float) -> bool:
        return self._expire_after is not None and time.time() - saved >= self._expire_after

    # ---- the store itself

    @property
    def nbytes(self) -> int:
        """How many bytes the values in memory have, those of open sessions included."""
        return sum(kept.nbytes for kept in self._memory.all().values())

    def close(self) -> None:
        """Forget all values in memory, and open no more sessions. Those that are open can still be saved and closed."""
        self._memory.close()

    def __enter__(self) -> SessionStore[ValueT]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_bounds(folder: object, max_bytes: int | None, expire_after: float | None, options: object) -> None:
    """Raise ValueError when sessions could not be kept within these bounds."""
    if max_bytes is not None and max_bytes <= 0:
        raise ValueError(f"max_bytes={max_bytes} leaves no memory; give a positive number, or None for no bound.")
    if expire_after is not None and not expire_after > 0:
        raise ValueError(f"expire_after={expire_after} would expire all; give a positive number of seconds, or None.")
    if folder is None and max_bytes is not None:
        raise ValueError(
            f"max_bytes={max_bytes} without a folder would lose what goes from memory; give a folder, or no max_bytes."
        )
    if folder is None and options is not None:
        raise ValueError("storage_options are given without a folder; leave them out, or give a URL as folder.")
