"""Texts to benchmark on: a dataset of the Hugging Face Hub, a local folder or file, or a built-in text."""

from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from datasets import load_dataset
from datasets.exceptions import DatasetsError

PYTHON_DOCS = "python-docs"
LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


class CorpusError(Exception):
    """The text asked for cannot be had; the message says which argument to change."""


def iter_texts(name: str, column: str = "text", task: str | None = None, split: str = "test") -> Iterator[str]:
    """Yield the documents of a corpus one by one.

    Parameters
    ----------
    name : str
        A Hub id, a folder, a .txt, .jsonl, .json, .parquet or .csv file, or ``python-docs``: the language reference
        that ships with Python, which needs no network.
    column : str, default="text"
        The column that holds the text. A .txt file has the column ``text`` and is one document.
    task : str, optional
        The dataset's configuration.
    split : str, default="test"
        The split of a Hub dataset or of a folder; a single file and a folder of .txt files are read whole.

    Raises
    ------
    CorpusError
        When the dataset, the split or the column does not exist, or nothing can be read from it.
    """
    if name == PYTHON_DOCS:
        yield "\n\n".join(topics.topics.values())
        return
    try:
        for row in _rows(name, task, split):
            if column not in row:
                raise CorpusError(f"--data_column {column!r} is not in {name!r}; it has {', '.join(sorted(row))}.")
            yield row[column]
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CorpusError(
            f"--dataset_name {name!r} (split {split!r}) cannot be read: {reason}. "
            f"Give a Hub id, a folder, a file ({', '.join(LOADERS)}) or {PYTHON_DOCS!r}."
        ) from error


def _rows(name: str, task: str | None, split: str):
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.glob("*.txt"))
    if not files:
        return load_dataset(name, task, split=split, streaming=True)
    if files[0].suffix not in LOADERS:
        raise ValueError(f"files ending in {files[0].suffix!r} are not known.")
    loader = LOADERS[files[0].suffix]
    options = {"sample_by": "document"} if loader == "text" else {}
    # Naming the split ourselves makes the files readable whatever --split says.
    return load_dataset(
        loader, data_files={split: [str(file) for file in files]}, split=split, streaming=True, **options
    )
