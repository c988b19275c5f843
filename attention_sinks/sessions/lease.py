"""A lock for folders far away: a small file that says until when it holds, and that its owner renews."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
import weakref
from contextlib import suppress

from fsspec import AbstractFileSystem
from transformers.utils import logging

logger = logging.get_logger(__name__)

SECONDS = 60.0
"""How long others wait for a process that has died. It is renewed three times as often."""

ROUNDS = 6
"""How often two that meet draw back and try again."""


class Lease:
    """A `SessionLock` that is one file among those in a folder of its own.

    To take it is to write a file, and then to see no other there. Of two that meet, at least one sees the other, and
    draws back. So nothing is asked of the file system but that it lists what was written before, and of the machines
    but that their clocks agree within some seconds.

    Parameters
    ----------
    files : AbstractFileSystem
        What reads and writes.
    folder : str
        Where the leases of this session lie.
    seconds : float, default 60
        For how long it holds without being renewed.
    """

    def __init__(self, files: AbstractFileSystem, folder: str, seconds: float = SECONDS):
        self._files, self._folder, self._seconds = files, folder, seconds
        self._path = f"{folder}/{uuid.uuid4().hex}.json"
        self._until = 0.0  # by the clock, which goes on while a machine sleeps
        self._held = False
        self._mutex = threading.Lock()
        self._released = threading.Event()

    @property
    def is_locked(self) -> bool:
        """Whether it is held. It is lost when it could not be renewed for as long as it lasts."""
        return self._held and time.time() < self._until

    def acquire(self) -> bool:
        """Take the lock unless another has it, and return whether it was taken."""
        for attempt in range(ROUNDS):
            if attempt:
                time.sleep(random.uniform(0, 0.02 * 2**attempt))
            if self._is_taken():
                return False
            self._write()
            if not self._is_taken():
                self._held = True
                threading.Thread(
                    target=_renew, args=(weakref.ref(self), self._released, self._seconds / 3), daemon=True
                ).start()
                return True
            self._remove(self._path)
        return False

    def renew(self) -> None:
        """Write anew until when it holds, unless it is lost."""
        with self._mutex:
            if self.is_locked:
                self._write()

    def release(self) -> None:
        """Give the lock back. Where the file cannot be removed, it ends by itself."""
        self._released.set()
        with self._mutex:
            written, self._held, self._until = self._until, False, 0.0
            if written:
                try:
                    self._remove(self._path)
                except Exception as error:  # every file system has errors of its own
                    logger.warning(
                        f"{self._path!r} stays for {self._seconds:.0f} s, its removal failed: {error!r:.200}"
                    )

    def _write(self) -> None:
        until = time.time() + self._seconds
        self._until = self._until or until  # known before the file is there, so that release() removes it
        content = json.dumps({"until": until}).encode()
        try:
            self._files.pipe_file(self._path, content)
        except FileNotFoundError:  # a file system that has folders
            self._files.makedirs(self._folder, exist_ok=True)
            self._files.pipe_file(self._path, content)
        self._until = until

    def _is_taken(self) -> bool:
        """Return whether the folder has the lease of another. Those that have ended are removed."""
        self._files.invalidate_cache(self._folder)
        try:
            paths = self._files.ls(self._folder, detail=False)
        except FileNotFoundError:
            return False
        own = self._path.rpartition("/")[2]
        others = [path for path in paths if path.rpartition("/")[2] != own]
        return sum(map(self._is_alive, others)) > 0  # of all, so that all that have ended are removed

    def _is_alive(self, path: str) -> bool:
        try:
            until = json.loads(self._files.cat_file(path))["until"]
        except FileNotFoundError:  # given back meanwhile
            return False
        except (ValueError, TypeError, KeyError):  # half written, where a file system does not write as a whole
            return True
        if time.time() < until:
            return True
        self._remove(path)
        return False

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(path)


def _renew(lease: weakref.ref[Lease], released: threading.Event, seconds: float) -> None:
    """Renew a lease every so many seconds until it is released, lost or forgotten by all others."""
    while not released.wait(seconds):
        held = lease()
        if held is None or not held.is_locked:
            return
        with suppress(Exception):  # a network that is gone for a moment; the lease still lasts for two more attempts
            held.renew()
        del held
