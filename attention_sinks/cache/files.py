"""Ordinary files of a user: opened without waiting, replaced as a whole, and private."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path

from .locks import HAS_LOCKS, lock, remove_if_abandoned

PRIVATE = 0o600
"""The mode of a new file: what was said to a model concerns nobody but the owner."""


class FileContentError(ValueError):
    """What a file holds, or would hold, cannot be loaded. The message begins with its path."""


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let every ValueError be a `FileContentError` that begins with `path`, of which it says what is wrong."""
    try:
        yield
    except ValueError as error:
        raise FileContentError(f"path={str(path)!r} {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[tuple[BufferedReader, int]]:
    """Open the file at `path` and give it with its size in bytes.

    Raises
    ------
    OSError
        When there is none, it cannot be read, or it is a folder, a FIFO, a device or a socket.
    """
    _check_ordinary(path, os.stat(path).st_mode)  # before it is opened, which a device may notice
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        _check_ordinary(path, status.st_mode)
        yield file, status.st_size


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file and rename that to `path`.

    A new file is readable by its owner alone; one that is replaced keeps its mode. Temporary files for `path` that
    killed processes have left are removed. On POSIX systems, the new file outlives a power cut.

    Raises
    ------
    OSError
        When the file cannot be written, or `path` is a folder, a FIFO, a device or a socket. What `path` held before is
        then untouched.
    """
    mode = _mode_at(path)
    prefix = f".attention_sinks.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."
    for abandoned in path.parent.glob(f"{prefix}*.tmp"):
        remove_if_abandoned(abandoned)
    file = _new_temporary(path, prefix)
    temporary = Path(file.name)
    try:
        with file:
            if mode != PRIVATE and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if HAS_LOCKS:
                os.replace(temporary, path)  # while it is locked, so that nobody takes it for an abandoned one
        if not HAS_LOCKS:
            os.replace(temporary, path)  # Windows renames no open file
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Write to disk what was renamed in `folder`, where the system can."""
    with suppress(OSError):  # Windows opens no folder, and some file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _new_temporary(path: Path, prefix: str) -> BufferedWriter:
    """Make an empty file beside `path`, lock it, and return it. Whatever happens, it is open no longer than it is used.

    An exception that leaves it behind lets go of it and with it of the lock, so that the next save can remove it.
    """
    while True:
        temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}.tmp")
        file = open(temporary, "xb", opener=_private)  # noqa: SIM115
        lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another save has removed it before it was locked


def _mode_at(path: Path) -> int:
    """Return the permissions that a new file at `path` gets."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return PRIVATE
    _check_ordinary(path, mode)
    return stat.S_IMODE(mode) & 0o777


def _check_ordinary(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(f"path={str(path)!r} is a FIFO, a device or a socket; give the path of an ordinary file.")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
