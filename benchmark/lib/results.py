"""CSV files: written at once, or valid at every moment for runs that can go on where their file ends."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """Write a CSV file, with its folders; what a row lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class ResultsFile:
    """Rows of one run, and beside them, in <name>.json, the settings they were made with.

    Parameters
    ----------
    path : Path
        The CSV file.
    columns : tuple of str
        Its header.
    settings : dict
        What must be the same for rows to belong together; JSON types only.
    """

    path: Path
    columns: tuple[str, ...]
    settings: dict

    @property
    def settings_path(self) -> Path:
        return self.path.with_suffix(".json")

    def check(self, overwrite: bool, resume: bool) -> list[dict[str, float]]:
        """Say no before any work is done; returns the rows of the run to go on with.

        Raises
        ------
        ValueError
            When the file exists and is neither to be replaced nor to be gone on with, or is of another run.
        """
        if not self.path.exists() or overwrite:
            return []
        if not resume:
            raise ValueError(
                f"{self.path} exists: pass --resume to go on with it, --overwrite to replace it, or another "
                "--output_dir."
            )
        rows = self._read()
        written = json.loads(self.settings_path.read_text()) if self.settings_path.exists() else {}
        for name, value in self.settings.items():
            if written.get(name) != value:
                raise ValueError(
                    f"{self.path} was made with {name}={written.get(name)!r}, not {value!r}: go on with the same "
                    "settings, or pass --overwrite or another --output_dir."
                )
        return rows

    def _read(self) -> list[dict[str, float]]:
        """The whole rows of the file; a last line that was cut off in the middle is left out."""
        text = self.path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        if not lines or lines[0].split(",") != list(self.columns):
            raise ValueError(
                f"{self.path} has another header than this script writes ({','.join(self.columns)}); give another "
                "--output_dir."
            )
        try:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is not all numbers ({error}); pass --overwrite to replace it.") from error

    def open(self, rows: Iterable[dict[str, float]]) -> "ResultsWriter":
        """Begin the file with `rows`, those to go on with."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        with ResultsWriter(partial, self.columns, "w") as writer:
            writer.write_header()
            writer.write(rows)
        self.settings_path.write_text(json.dumps(self.settings, indent=1) + "\n")
        partial.replace(self.path)
        return ResultsWriter(self.path, self.columns, "a")


class ResultsWriter:
    """Appends rows; a big buffer flushed once per call of `write`, so the file only ever ends in a whole row."""

    def __init__(self, path: Path, columns: tuple[str, ...], mode: str):
        self._file = open(path, mode, newline="", buffering=1 << 24)  # noqa: SIM115  closed by __exit__
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def write_header(self) -> None:
        self._writer.writeheader()

    def write(self, rows: Iterable[dict[str, float]]) -> None:
        self._writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in rows)
        self._file.flush()
