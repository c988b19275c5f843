"""Texts to benchmark on, from the Hugging Face Hub, a local folder or file, or Python's own documentation."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pydoc_data import topics

import torch
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from benchmark.lib.common import positive_int

PYTHON_DOCS = "python-docs"
LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


class CorpusError(Exception):
    """The text asked for cannot be had; the message says which argument to change."""


def add_corpus_arguments(parser: argparse.ArgumentParser, num_tokens: int) -> None:
    """Add the options that choose a text and how much of it is read: `num_tokens` is the default of that."""
    add = parser.add_argument
    add(
        "--dataset_name",
        default="emozilla/pg19-test",
        help=f"a Hub id, a folder, a file ({', '.join(LOADERS)}), or {PYTHON_DOCS}: Python's own language reference, "
        "which needs no network (default: %(default)s)",
    )
    add("--data_column", default="text", help="the dataset's column that holds the text (default: %(default)s)")
    add("--task", default=None, help="the dataset's configuration, where it has several")
    add("--split", default="test", help="the dataset's split, such as test or validation (default: %(default)s)")
    add(
        "--num_samples",
        type=positive_int,
        default=1,
        help="documents (books) to read, one behind the other as one text (default: %(default)s)",
    )
    add("--num_tokens", type=positive_int, default=num_tokens, help="tokens of it to read (default: %(default)s)")


def read_tokens(args: argparse.Namespace, tokenizer) -> torch.Tensor:
    """The first token ids of the text that `args` choose, shape [1, --num_tokens].

    Raises
    ------
    CorpusError
        When the text cannot be read or is shorter.
    """
    ids = []
    texts = iter_texts(args.dataset_name, args.data_column, args.task, args.split)
    for number, text in enumerate(islice(texts, args.num_samples)):
        # What a tokenizer puts in front of a text stands in front of the first document only.
        ids += tokenizer(text, add_special_tokens=number == 0, verbose=False).input_ids
        if len(ids) >= args.num_tokens:
            return torch.tensor([ids[: args.num_tokens]])
    raise CorpusError(
        f"--num_tokens {args.num_tokens} is more than the text's {len(ids)} tokens; lower it, raise --num_samples "
        f"{args.num_samples}, or choose a longer text with --dataset_name."
    )


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
    for row in iter_rows(name, task, split):
        if column not in row:
            raise CorpusError(f"--data_column {column!r} is not in {name!r}; it has {', '.join(sorted(row))}.")
        yield row[column]


def iter_rows(name: str, task: str | None = None, split: str = "test") -> Iterator[dict]:
    """Yield the rows of a Hub dataset, a folder or a file; CorpusError when they cannot be read."""
    try:
        yield from _rows(name, task, split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CorpusError(
            f"{name!r} (split {split!r}) cannot be read: {reason}. Give a Hub id, a folder, a file "
            f"({', '.join(LOADERS)}) or, where a text is read, {PYTHON_DOCS!r}."
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
