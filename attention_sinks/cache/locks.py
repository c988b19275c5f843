"""Locks that tell a file that is being written from one that a killed process has left behind."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None

DAY = 86400.0
"""Without locks, a file that nobody has changed for so many seconds counts as left behind."""


def lock(descriptor: int) -> None:
    """Lock an open file until it is closed or its process ends. Where a file system has no locks, do nothing."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def remove_if_abandoned(path: Path) -> None:
    """Remove the file at `path` unless somebody is writing it."""
    with suppress(OSError):  # it is gone by now, another user's, or locked
        if fcntl is None:
            if time.time() - os.stat(path).st_mtime > DAY:
                path.unlink()
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()  # while it is locked: its owner may have made it but now, and sees that it is gone
        finally:
            os.close(descriptor)
