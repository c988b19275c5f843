"""Where the files of sessions lie: what a folder has to offer, whatever it is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Protocol

from .local_folder import LocalFolder
from .remote_folder import RemoteFolder


class SessionLock(Protocol):
    """The right to be the only one who reads and writes one session. Processes elsewhere respect it too."""

    @property
    def is_locked(self) -> bool:
        """Whether it is held. A lock in a folder far away may be lost to others."""
        ...

    def acquire(self) -> bool:
        """Take the lock unless another has it, and return whether it was taken."""
        ...

    def release(self) -> None:
        """Give the lock back, if it is held."""
        ...


class SessionFolder(Protocol):
    """Files by digest, each written as a whole or not at all."""

    def path(self, digest: str) -> str:
        """Return where the file is, for messages."""
        ...

    def sizes(self) -> dict[str, int]:
        """Return the size of every file in bytes."""
        ...

    def starts(self, digests: Sequence[str], nbytes: int) -> list[bytes | Exception]:
        """Return the first `nbytes` of each file, or what went wrong there; FileNotFoundError when there is none."""
        ...

    def opened(self, digest: str) -> AbstractContextManager[tuple[BufferedReader | BytesIO, int]]:
        """Open the file, and give it with its size in bytes; FileNotFoundError when there is none."""
        ...

    def write(self, digest: str, content: bytes) -> None:
        """Replace the file. When this returns, it is safe."""
        ...

    def remove(self, digest: str) -> bool:
        """Remove the file, whose lock is held, and return whether there was one."""
        ...

    def lock(self, digest: str) -> SessionLock:
        """Return the lock of the session, not yet taken."""
        ...


def folder_at(folder: str | os.PathLike[str], storage_options: dict[str, Any] | None) -> SessionFolder:
    """Return the folder at a local path, or at a URL that fsspec knows. It is made where there is none.

    Raises
    ------
    OSError
        When it cannot be written.
    ValueError
        When options are given for a local path.
    ImportError
        When the package for such URLs is not installed.
    """
    url = os.fspath(folder)
    if "://" in url or "::" in url:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        files, path = url_to_fs(url, **(storage_options or {}))
        return LocalFolder(Path(path)) if isinstance(files, LocalFileSystem) else RemoteFolder(files, path)
    if storage_options is not None:
        raise ValueError(
            f"storage_options are given for folder={url!r}, which is a local path; leave them out, or give a URL."
        )
    return LocalFolder(Path(url))
