"""An exception at any line of the package."""

import dis
import linecache
import re
import sys
from functools import cache
from pathlib import Path

import torch

import attention_sinks

PACKAGE = str(Path(attention_sinks.__file__).parent)
LOCKED = re.compile(r"with [\w.]*(lock|mutex):", re.IGNORECASE)


@cache
def _lock_exits(code):
    """The instructions of `code` at which a `with` gives a lock back. Python lets no Ctrl-C through before them."""
    seen, exits = set(), set()
    for offset, line in dis.findlinestarts(code):
        if line in seen and LOCKED.search(linecache.getline(code.co_filename, line)):
            exits.add(offset)
        seen.add(line)
    return exits


def interrupted(action, *lines):
    """Run `action`, with Ctrl-C as it comes to each of these lines of the package, counted from 1 as they are run.

    Return whether it came to the first of them. Ctrl-C at the end of a `with torch.no_grad()` leaves gradients off, in
    any program; here they are afterwards as they were.
    """
    executed, with_gradients = 0, torch.is_grad_enabled()

    def count(frame, event, arg):
        nonlocal executed
        if event == "line" and frame.f_lasti not in _lock_exits(frame.f_code):
            executed += 1
            if executed in lines:
                raise KeyboardInterrupt
        return count

    before = sys.gettrace()
    sys.settrace(lambda frame, event, arg: count if frame.f_code.co_filename.startswith(PACKAGE) else None)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(with_gradients)
    return False
