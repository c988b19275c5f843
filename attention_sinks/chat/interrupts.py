"""Ctrl-C at a moment of our choosing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held_back() -> Iterator[Callable[[], bool]]:
    """Ctrl-C takes effect after the block, where all is in order; pressed twice, at once.

    In another thread than the main one there is nothing to hold back: Python interrupts the main thread alone.

    Yields
    ------
    callable
        Says whether Ctrl-C has been pressed, so that a long block can end early.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: False
        return
    pressed: list[tuple] = []

    def remember(*arguments) -> None:
        pressed.append(arguments)
        if len(pressed) > 1:
            handler(*arguments)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(*pressed[0])
