"""An exception at any line of the package."""

import sys
from pathlib import Path

import torch

import attention_sinks

PACKAGE = str(Path(attention_sinks.__file__).parent)


def interrupted(action, *lines):
    """Run `action`, with Ctrl-C as it comes to each of these lines of the package, counted from 1 as they are run.

    Return whether it came to the first of them. Ctrl-C at the end of a `with torch.no_grad()` leaves gradients off, in
    any program; here they are afterwards as they were.
    """
    executed, with_gradients = 0, torch.is_grad_enabled()

    def count(frame, event, arg):
        nonlocal executed
        executed += event == "line"
        if event == "line" and executed in lines:
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
