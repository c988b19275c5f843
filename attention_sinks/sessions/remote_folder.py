"""Files of sessions in an object store, or in whatever else fsspec knows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import cast

from fsspec import AbstractFileSystem

from .lease import Lease
from .local_folder import FILE_NAME


class RemoteFolder:
    """A `SessionFolder` that is not on this machine.

    Its file system must replace an object as a whole, and must list what was written before. Object stores do, and so
    does `memory://`.

    Parameters
    ----------
    files : AbstractFileSystem
        What reads and writes.
    folder : str
        The folder's path there.

    Raises
    ------
    OSError
        When it cannot be written.
    """

    def __init__(self, files: AbstractFileSystem, folder: str):
        self._files, self._folder = files, folder.rstrip("/")
        probe = f"{self._folder}/{uuid.uuid4().hex}.probe"
        try:
            files.makedirs(self._folder, exist_ok=True)
            files.pipe_file(probe, b"probe")
            files.rm_file(probe)
        except Exception as error:  # every file system has errors of its own
            raise OSError(
                f"folder={files.unstrip_protocol(folder)!r} cannot be written ({error!r:.200}); choose another, or "
                "check storage_options."
            ) from error

    def _file(self, digest: str) -> str:
        return f"{self._folder}/{digest}.safetensors"

    def path(self, digest: str) -> str:
        """Return where the file is."""
        return str(self._files.unstrip_protocol(self._file(digest)))

    def sizes(self) -> dict[str, int]:
        """Return the size of every file in bytes."""
        self._files.invalidate_cache(self._folder)
        try:
            entries = self._files.ls(self._folder, detail=True)
        except FileNotFoundError:  # an object store has no empty folders
            return {}
        named = [(FILE_NAME.fullmatch(entry["name"].rpartition("/")[2]), entry["size"]) for entry in entries]
        return {match[1]: size for match, size in named if match}

    def starts(self, digests: Sequence[str], nbytes: int) -> list[bytes | Exception]:
        """Return the first `nbytes` of each file, or what went wrong there. Many are read at once."""
        paths = [self._file(digest) for digest in digests]
        starts: list[bytes | Exception] = self._files.cat_ranges(
            paths, [0] * len(paths), [nbytes] * len(paths), on_error="return"
        )
        return starts

    @contextmanager
    def opened(self, digest: str) -> Iterator[tuple[BytesIO, int]]:
        """Read the file, and give it with its size in bytes."""
        content = cast(bytes, self._files.cat_file(self._file(digest)))
        yield BytesIO(content), len(content)

    def write(self, digest: str, content: bytes) -> None:
        """Replace the file as a whole."""
        self._files.pipe_file(self._file(digest), content)

    def remove(self, digest: str) -> bool:
        """Remove the file, and return whether there was one."""
        self._files.invalidate_cache(self._folder)
        if not self._files.exists(self._file(digest)):
            return False
        self._files.rm_file(self._file(digest))
        return True

    def lock(self, digest: str) -> Lease:
        """Return the lock of the session."""
        return Lease(self._files, f"{self._folder}/leases/{digest}")
