"""Where the chat demo gets its prompts: a hub data set, a folder, a file, or the terminal."""

import contextlib
from pathlib import Path

from datasets import load_dataset

DEFAULT_PROMPTS = Path(__file__).resolve().parent / "prompts.jsonl"
FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
# In the order they are looked for; "text" is what a line of a .txt file arrives in.
COLUMNS = ("turns", "prompt", "text")


def open_dataset(name):
    """Open `name`, a hub id, a folder or a file, as a stream of rows (its "train" split if it has one)."""
    path = Path(name)
    if path.is_file() and path.suffix not in FILE_BUILDERS:
        raise SystemExit(f"--dataset_name {name}: a file must end in one of {', '.join(FILE_BUILDERS)}.")
    if path.suffix in FILE_BUILDERS:
        if not path.is_file():
            raise SystemExit(f"--dataset_name {name}: there is no such file. Check the path, or give a hub id.")
        splits = load_dataset(FILE_BUILDERS[path.suffix], data_files=str(path), streaming=True)
    else:
        splits = load_dataset(name, streaming=True)
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def read_prompts(name):
    """Yield every prompt of a data set as text; a row may hold one prompt or a list of turns.

    Parameters
    ----------
    name : str or path
        Hub id, folder or file (.jsonl, .json, .parquet, .csv, .txt). Prompts are read from the column `turns` or
        `prompt`; of a .txt file, each line is a prompt. Empty ones are left out.
    """
    for row in open_dataset(name):
        column = next((column for column in COLUMNS if column in row), None)
        if column is None:
            raise SystemExit(
                f"--dataset_name {name}: a row has neither of the columns {', '.join(COLUMNS)}, only "
                f"{', '.join(row)}. Rename the column that holds the prompts to `prompt`."
            )
        prompts = [row[column]] if isinstance(row[column], str) else row[column] or []
        yield from filter(None, prompts)


def typed_prompts():
    """Yield what the user types, until Ctrl-D or `exit`."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() line editing and a history where the system has it
    while True:
        try:
            prompt = input("\nUser: ").strip()
        except KeyboardInterrupt:
            print("\n(Ctrl-D or `exit` leaves.)")
        except EOFError:
            print()
            return
        else:
            if prompt == "exit":
                return
            if prompt:
                yield prompt
