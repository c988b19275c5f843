"""The files of sessions by the sessions' names, and what is said when one of them is damaged."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging

from ..cache.files import FileContentError, naming
from .file import Header, decode_session, encode_session, header_of, header_size
from .folder import SessionFolder, SessionLock

logger = logging.get_logger(__name__)

START = 2**16
"""How much of a file is read for its header. Few headers are longer; they are read again."""

LONGEST_NAME = 512


def check_name(name: str) -> None:
    """Raise an error unless a session may have this name."""
    if not isinstance(name, str):
        raise TypeError(f"name={name!r:.80} is a {type(name).__name__}; give a str.")
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"name={name!r:.80} has {len(name)} characters; give one of 1 to {LONGEST_NAME}.")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name={name!r:.80} has half a character, which no file can hold; leave it out.") from None


def digest_of(name: str) -> str:
    """Return what stands for a session's name in the names of its files."""
    return hashlib.sha256(name.encode()).hexdigest()


class SessionFiles:
    """Sessions in a folder. The file of a session has its name inside, and a hash of its name outside.

    Parameters
    ----------
    folder : SessionFolder
        Where the files lie.
    """

    def __init__(self, folder: SessionFolder):
        self._folder = folder

    def headers(self) -> Iterator[tuple[Header, int]]:
        """Give the header of every session and the size of its file in bytes. Damaged files are warned of."""
        sizes = self._folder.sizes()
        for digest, start in zip(sizes, self._folder.starts(list(sizes), START), strict=True):
            try:
                header = self._header(digest, start)
            except (OSError, ValueError) as error:
                logger.warning(f"{error} It is left out.")
                continue
            if header is not None:
                yield header, sizes[digest]

    def header(self, name: str) -> Header | None:
        """Return what the file of this session says of itself, or None when there is none.

        Raises
        ------
        OSError
            When it cannot be read.
        ValueError
            When it is damaged.
        """
        digest = digest_of(name)
        (start,) = self._folder.starts([digest], START)
        with self._telling_cure(name):
            return self._header(digest, start)

    def read(self, name: str) -> tuple[Header, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the header of this session and the tensors and state of its value, or None when there is no file.

        Raises
        ------
        OSError
            When it cannot be read.
        ValueError
            When it is damaged.
        """
        digest = digest_of(name)
        try:
            with self._folder.opened(digest) as (file, size), self._telling_cure(name), naming(self.path(name)):
                header, tensors, state = decode_session(file, size)
                _check_place(header, digest)
                return header, tensors, state
        except FileNotFoundError:
            return None

    def write(self, name: str, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Header:
        """Replace the file of this session, whose lock is held. When this returns, the value is safe.

        Raises
        ------
        OSError
            When it cannot be written. What was saved before is then untouched.
        ValueError
            When the state holds what cannot be loaded again.
        """
        with naming(self.path(name)):
            content = encode_session(name, time.time(), tensors, state)
        self._folder.write(digest_of(name), content)
        return header_of(content[: header_size(content[:8])])

    def remove(self, name: str) -> bool:
        """Remove the file of this session, whose lock is held, and return whether there was one."""
        return self._folder.remove(digest_of(name))

    def lock(self, name: str) -> SessionLock:
        """Return the lock of this session, not yet taken."""
        return self._folder.lock(digest_of(name))

    def path(self, name: str) -> str:
        """Return where the file of this session is, for messages."""
        return self._folder.path(digest_of(name))

    def _header(self, digest: str, start: bytes | Exception) -> Header | None:
        """Return what the file says that begins with `start`, or None when it is gone."""
        if not isinstance(start, Exception) and header_size(start) > max(len(start), START):
            (start,) = self._folder.starts([digest], header_size(start))
        if isinstance(start, FileNotFoundError):
            return None
        if isinstance(start, Exception):
            raise start
        with naming(self._folder.path(digest)):
            header = header_of(start)
            _check_place(header, digest)
        return header

    @contextmanager
    def _telling_cure(self, name: str) -> Iterator[None]:
        """Let every ValueError say what can be done about a damaged file."""
        try:
            yield
        except ValueError as error:
            raise FileContentError(
                f"{error} Call delete({name!r:.80}), or put an intact copy of the file there."
            ) from error


def _check_place(header: Header, digest: str) -> None:
    """Raise ValueError unless a file with this header belongs to the digest."""
    if digest_of(header.name) != digest:
        raise ValueError(f"holds the session {header.name!r:.80}, whose file has another name; move it back.")
