"""Files of sessions in a folder of this machine, each with a lock of the kernel."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from filelock import FileLock, Timeout

from ..cache.files import PRIVATE, reading, replace_file

FILE_NAME = re.compile(r"([0-9a-f]{64})\.safetensors")
"""A digest and what follows it. Other files in the folder are no sessions."""


class KernelLock:
    """A lock that ends with its process, however that ends.

    Parameters
    ----------
    path : Path
        An empty file that is locked. It stays when the lock is released, so that all lock the same file.
    """

    def __init__(self, path: Path):
        self._lock = FileLock(path, mode=PRIVATE, thread_local=False)

    @property
    def is_locked(self) -> bool:
        """Whether it is held."""
        return self._lock.is_locked

    def acquire(self) -> bool:
        """Take the lock unless another has it, and return whether it was taken."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        self._lock.release()


class LocalFolder:
    """A `SessionFolder` of this machine.

    Parameters
    ----------
    folder : Path
        It is made where there is none, for its owner alone.

    Raises
    ------
    OSError
        When it cannot be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder.expanduser().absolute()
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise OSError(
                f"folder={str(folder)!r} cannot be written ({error.strerror}); choose another, or change its mode."
            ) from error

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.safetensors"

    def _lock_file(self, digest: str) -> Path:
        return self._folder / f"{digest}.lock"

    def path(self, digest: str) -> str:
        """Return where the file is."""
        return str(self._file(digest))

    def sizes(self) -> dict[str, int]:
        """Return the size of every file in bytes."""
        sizes = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if match := FILE_NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # removed meanwhile
                        sizes[match[1]] = entry.stat().st_size
        return sizes

    def starts(self, digests: Sequence[str], nbytes: int) -> list[bytes | Exception]:
        """Return the first `nbytes` of each file, or what went wrong there."""
        return [self._start(digest, nbytes) for digest in digests]

    def _start(self, digest: str, nbytes: int) -> bytes | Exception:
        try:
            with self.opened(digest) as (file, _):
                return file.read(nbytes)
        except OSError as error:
            return error

    @contextmanager
    def opened(self, digest: str) -> Iterator[tuple[BufferedReader, int]]:
        """Open the file, and give it with its size in bytes."""
        with reading(self._file(digest)) as opened:
            yield opened

    def write(self, digest: str, content: bytes) -> None:
        """Replace the file as a whole."""
        replace_file(self._file(digest), content)

    def remove(self, digest: str) -> bool:
        """Remove the file and that of its lock, which is held, and return whether there was one.

        Who waits for the lock meanwhile sees that its file is gone, and does not take it.
        """
        try:
            self._file(digest).unlink()
            return True
        except FileNotFoundError:
            return False
        finally:
            with suppress(OSError):  # Windows removes no open file
                self._lock_file(digest).unlink()

    def lock(self, digest: str) -> KernelLock:
        """Return the lock of the session."""
        return KernelLock(self._lock_file(digest))
