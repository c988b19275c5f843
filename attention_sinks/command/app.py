"""The program and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from . import chat, check, serve

EXAMPLES = """\b
Examples:
  attention-sinks check HuggingFaceTB/SmolLM2-135M-Instruct
  attention-sinks chat HuggingFaceTB/SmolLM2-135M-Instruct
  attention-sinks serve HuggingFaceTB/SmolLM2-135M-Instruct
  attention-sinks chat --help
"""

app = typer.Typer(
    name="attention-sinks",
    help="Language models that read and write without end, in constant memory.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is half as long
    pretty_exceptions_enable=False,
)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=serve.EXAMPLES)(serve.serve)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"attention-sinks {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Language models that read and write without end, in constant memory."""
