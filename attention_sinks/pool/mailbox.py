"""What goes from the thread of a pool to whoever reads it: a thread, or an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Mailbox(Generic[ItemT]):
    """A queue that threads and event loops can wait at. It has no bound: what it is for has an end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[ItemT] = deque()
        self._waiting: list[Callable[[], object]] = []

    def put(self, item: ItemT) -> None:
        """Add an item, and wake all who wait."""
        with self._lock:
            self._items.append(item)
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            with suppress(RuntimeError):  # the event loop of one who waited is closed
                wake()

    def get(self) -> ItemT:
        """Take the first item; wait in this thread until there is one."""
        arrived = threading.Event()
        while not (found := self._take(arrived.set)):
            arrived.wait()
            arrived.clear()
        return found[0]

    async def aget(self) -> ItemT:
        """Take the first item; wait in this event loop until there is one."""
        arrived = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
        while not (found := self._take(wake)):
            await arrived.wait()
            arrived.clear()
        return found[0]

    def _take(self, wake: Callable[[], object]) -> list[ItemT]:
        """Return a list of the first item; an empty one when there is none, and `wake` is called with the next."""
        with self._lock:
            if self._items:
                return [self._items.popleft()]
            self._waiting.append(wake)
            return []
