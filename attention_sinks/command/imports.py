"""What a subcommand imports stays as long as the program, so the garbage collector need not look at it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """Keep the garbage collector from the imports of a block, while they are made and for good.

    It would look through the modules of PyTorch and Transformers again and again, and once more at the exit, which
    together takes longer than a second.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
