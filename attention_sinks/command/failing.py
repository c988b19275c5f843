"""How a subcommand ends when it cannot do what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

BAD_INPUT = 2
"""The exit code for what the user can put right, as the benchmarks and all of Python's own parsers have it."""

EXTRAS = {
    **dict.fromkeys(("fastapi", "gradio", "prometheus_client", "pydantic_settings", "uvicorn"), "serve"),
    "ray": "ray",
}
"""The extra that brings a package, by its name in an import."""

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
        typer.echo(f"attention-sinks {command}: error: {_told(error)}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def _told(error: Exception) -> str:
    """Return an error as one line; of a package that is missing, what brings it."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed; call `pip install 'attention_sinks[{EXTRAS[error.name]}]'`."
    return " ".join(str(error).split())
