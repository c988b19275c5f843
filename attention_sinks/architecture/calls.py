"""Which calls of a model run now, so that attention sinks neither go in nor out meanwhile.

This is the one thing about calls that is not kept in a cache: a call without a cache has to be known, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from time import sleep
from typing import Any
from weakref import WeakSet, WeakValueDictionary


class Call:
    """One call that runs. It is known as long as the frame that runs it lives, whatever exception ends it."""

    __slots__ = ("__weakref__",)


class Change:
    """One change of a model. Only other threads are kept from calls and changes by it."""

    def __init__(self) -> None:
        self.thread = get_ident()


class RunningCalls:
    """The calls of one base model that run now.

    There is no lock, which Ctrl-C might leave locked.

    Attributes
    ----------
    running : WeakSet of Call
        A call adds itself, and lets `begin` settle it where a change is made. In the end it takes itself out.
    changing : WeakValueDictionary of int to Change
        Who puts attention sinks in or takes them out now, by thread.
    """

    def __init__(self) -> None:
        self.running: WeakSet[Call] = WeakSet()
        self.changing: WeakValueDictionary[int, Change] = WeakValueDictionary()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Know of a call for the length of a block. A step of a stream does the same without the block."""
        call = Call()
        try:
            self.begin(call)
            yield
        finally:
            self.running.discard(call)

    def begin(self, call: Call) -> None:
        """Know of `call`, but not before a change is done."""
        self.running.add(call)
        while self._is_changed_elsewhere():  # whoever makes it may not have seen the call
            self.running.discard(call)
            sleep(1e-3)
            self.running.add(call)

    @contextmanager
    def none(self, model: object) -> Iterator[None]:
        """Let no call of `model` begin for the length of a block; RuntimeError, with the cure, when one runs."""
        change = Change()
        try:
            self.changing[change.thread] = change
            if self.running or self._is_changed_elsewhere():
                raise RuntimeError(
                    f"model={type(model).__name__} is in use: a call has not ended, in another thread or around this "
                    "one, and attention sinks cannot go in or out in the midst of it. Wait for it, then try again."
                )
            yield
        finally:
            self.changing.pop(change.thread, None)

    def _is_changed_elsewhere(self) -> bool:
        changes = [ref() for ref in self.changing.valuerefs()]  # a list that is made at once
        return any(change is not None and change.thread != get_ident() for change in changes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle no calls: none of them runs in the copy."""
        return RunningCalls, ()
