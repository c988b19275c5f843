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
        cure = "call `pip install 'attention_sinks[cli]'`"
        print(f"attention-sinks: error: the package {error.name} is not installed; {cure}.", file=sys.stderr)
        sys.exit(2)
    app(prog_name="attention-sinks")


if __name__ == "__main__":
    main()
