"""What somebody types: messages of one line or of several, in a terminal or through a pipe, and JSON in an option."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BLOCK = '"""'
"""The line before and after a message of several lines."""


def read_message(prompt: str, following: str) -> str | None:
    """Return the next message; None at the end of the input.

    A line that ends in a backslash goes on in the next one, and the lines between two of three quotation marks are one
    message.

    Parameters
    ----------
    prompt, following : str
        What stands before the first line and before the others, in a terminal.
    """
    read = _typed_line if sys.stdin.isatty() else _piped_line
    line = read(prompt)
    if line is None:
        return None
    if line.strip() == BLOCK:
        return "\n".join(_block(read, following))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        if (line := read(following)) is None:
            break
        lines.append(line)
    return "\n".join(lines)


def _block(read: Callable[[str], str | None], prompt: str) -> list[str]:
    lines = []
    while (line := read(prompt)) is not None and line.strip() != BLOCK:
        lines.append(line)
    return lines


def _typed_line(prompt: str) -> str | None:
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing and a history where the system has it
    if not sys.stdout.isatty():  # the prompt is not among what is written to a file
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    try:
        return _clean(input(prompt))
    except EOFError:
        return None


def _piped_line(prompt: str) -> str | None:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise ValueError(f"the input is no text in {error.encoding}; convert it first.") from error
    return _clean(line).rstrip("\r\n") if line else None


def _clean(line: str) -> str:
    """Return a line without what is no character, which no tokenizer takes."""
    return line.encode("utf-8", "replace").decode("utf-8")


def json_object(option: str, text: str) -> dict[str, Any]:
    """Return the object that JSON text holds; `option` is what stands before it on the command line.

    Raises
    ------
    ValueError
        When it is no JSON, or holds something else.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option}{text}: this is no JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f'{option}{text}: pass an object, such as {{"enable_thinking": false}}.')
    return value
