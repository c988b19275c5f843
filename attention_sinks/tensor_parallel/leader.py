"""`Leader`: lets the processes that follow do what this one does with the model and its caches."""

from __future__ import annotations

import functools
import itertools
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from .commands import Command, Outcome, called_modules, pack, seen_by
from .led_cache import LedCache

ENDED = "a process that shares the model has ended; start all of them again."


class Leader:
    """What the first of several processes that share a model has to tell the others.

    Every change of a cache and every call of the model is a command. The others get it before it is done here, and
    learn afterwards what came of it. One command ends before the next begins, in whatever thread, so that all processes
    have the same order.

    Parameters
    ----------
    connections : sequence of Connection
        One to each process that follows.

    Attributes
    ----------
    cache_class : type of LedCache
        The class of the caches that all processes have.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections
        self._lock, self._is_leading = threading.RLock(), False
        self._numbers, self._forgotten = itertools.count(), deque[int]()
        self.cache_class: type[LedCache] = type(LedCache.__name__, (LedCache,), {"leader": self})

    def lead(self, model: Any) -> None:
        """From now on let the others make all calls of `model`, whose shards they have."""
        for name, module in called_modules(model).items():
            module.forward = self._led(name, module.forward)

    def forget(self, number: int) -> None:
        """Let the others drop a cache with the next command; the garbage collector may call this anywhere."""
        self._forgotten.append(number)

    def dismiss(self) -> None:
        """Let the others end."""
        with self._lock:
            self._send(None)

    @contextmanager
    def leads(self, action: str, *arguments: Any, parts: Sequence[bytes] = ()) -> Iterator[int]:
        """Let the others do what the block does here; it gets the number of the cache that it makes, if any.

        A block within another one is a part of what they do already. `parts` has something for each of the others.

        Raises
        ------
        TypeError
            When an argument cannot be sent. Nothing has been done then.
        ConnectionError
            When another process has ended.
        """
        with self._lock:
            number = next(self._numbers)
            if self._is_leading:
                yield number
                return
            caches: list[Any] = []
            packed = pack(arguments, caches)
            forgotten = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
            command = Command(action, packed, number, forgotten)
            self._send(*([replace(command, part=part) for part in parts] or [command]))
            error = None
            self._is_leading = True
            try:
                yield number
            except BaseException as raised:
                error = repr(raised)
                raise
            finally:
                self._is_leading = False
                self._send(Outcome(error, seen_by(caches)))

    def _led(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def led(*args: Any, **kwargs: Any) -> Any:
            with self.leads("call", name, args, kwargs):
                return forward(*args, **kwargs)

        return led

    @property
    def count(self) -> int:
        """How many processes share the model."""
        return 1 + len(self._connections)

    def replies(self) -> list[bytes]:
        """Return what the others answer to a command, within its block."""
        try:
            return [connection.recv_bytes() for connection in self._connections]
        except (EOFError, OSError) as error:
            raise ConnectionError(ENDED) from error

    def _send(self, *messages: Command | Outcome | None) -> None:
        """Send the others one message each, or all the same."""
        pickled = [pickle.dumps(message) for message in messages]
        try:
            for connection, data in zip(self._connections, itertools.cycle(pickled), strict=False):
                connection.send_bytes(data)
        except OSError as error:
            raise ConnectionError(ENDED) from error
