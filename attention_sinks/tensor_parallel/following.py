"""The life of a process that follows: it does what comes in, and ends with the leading process, whatever it does."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from .commands import Command, Outcome
from .follower import Follower

PATIENCE = 30.0
"""Seconds after which a process that has not done what another one has done counts as stuck."""


def follow(load: Callable[[], Any], inbox: Inbox) -> None:
    """Load the model, then do what comes in until the leading process says that it ends."""
    follower = Follower(load(), inbox.reply)
    while (command := inbox.command()) is not None:
        inbox.compare(command, follower.obey(command))


class Inbox:
    """What comes from the leading process. A thread reads it, so that its end is noticed also amid a call.

    Parameters
    ----------
    connection : Connection
        From the leading process.
    name : str
        What this process is called where it says why it ends.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._due: deque[float] = deque()  # when outcomes came that have not been compared yet
        threading.Thread(target=self._read, name="attention_sinks-inbox", daemon=True).start()

    def command(self) -> Command | None:
        """Return the next command as soon as there is one; None when there are no more."""
        command: Command | None = self._messages.get()
        return command

    def reply(self, data: bytes) -> None:
        """Send something to the leading process."""
        self._connection.send_bytes(data)

    def compare(self, command: Command, own: Outcome) -> None:
        """End this process, and with it all others, when a command went another way than in the leading process.

        An error may be that of all. But where the leading process goes on without it, it waits for this one in the
        middle of its call, and says nothing.
        """
        try:
            theirs: Outcome = self._messages.get(timeout=None if own.error is None else PATIENCE)
        except queue.Empty:
            self._end(f"it has ended {command.action!r} with {own.error}, the first process goes on")
        self._due.popleft()
        if (difference := own.difference(theirs)) is not None:
            self._end(f"after {command.action!r} {difference}")

    def _read(self) -> None:
        try:
            while True:
                if self._connection.poll(PATIENCE if self._due else None):
                    message = pickle.loads(self._connection.recv_bytes())
                    if isinstance(message, Outcome):
                        self._due.append(time.monotonic())
                    self._messages.put(message)
                if self._due and time.monotonic() > self._due[0] + PATIENCE:
                    self._end("it has not done what the first process has done half a minute ago")
        except (EOFError, OSError):  # the leading process has gone, and may have left this one amid a call
            os._exit(0)

    def _end(self, reason: str) -> NoReturn:
        print(f"{self._name}: {reason}.", file=sys.stderr, flush=True)
        os._exit(1)
