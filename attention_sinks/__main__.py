"""`python -m attention_sinks` is the program `attention-sinks`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program; exit code 2 when the packages are missing that it needs besides those of the library."""
    try:
        from .command.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"attention-sinks: error: {error.name} is not installed; call `pip install 'attention_sinks[cli]'`.")
    app(prog_name="attention-sinks")


if __name__ == "__main__":
    main()
