"""How a subcommand ends when it cannot do what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

BAD_INPUT = 2
"""The exit code for what the user can put right, as the benchmarks and all of Python's own parsers have it."""

DISAGREES = 1
"""The exit code of a check that has found something wrong."""


@contextmanager
def one_line_for_bad_input(command: str) -> Iterator[None]:
    """Turn an error about the input into one line on stderr and exit code 2. Other errors are bugs and stay.

    So does a closed stdout, as of `| head`: the parser of the command line ends the program, without a word.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ImportError, MemoryError, NotImplementedError, OSError, ValueError) as error:
        typer.echo(f"attention-sinks {command}: error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(BAD_INPUT) from None
