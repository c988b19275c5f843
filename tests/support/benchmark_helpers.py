"""Run the benchmark scripts in this process, on a tiny random model in a folder, as a user runs them in a shell."""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from support.helpers import VOCABULARY, random_ids, tiny_llama
from support.paths import ROOT
from support.toy_tokenizers import tokenizer_of

BENCHMARK = ROOT / "benchmark"

WORDS = [f"w{i}" for i in range(VOCABULARY)]


@dataclass(frozen=True)
class Run:
    """What a script left behind: its exit code and what it printed."""

    code: int
    output: str
    errors: str


def run_script(name, *arguments):
    """Run benchmark/<name>.py with these arguments, to its end or its SystemExit."""
    main = importlib.import_module(f"benchmark.{name.replace('/', '.')}").main
    output, errors, code = io.StringIO(), io.StringIO(), 0
    argv = [f"benchmark/{name}.py", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(output), redirect_stderr(errors):
        try:
            main()
        except SystemExit as left:
            code = left.code or 0
    return Run(code, output.getvalue(), errors.getvalue())


def refused(run, *words):
    """The script left with code 2 and one line on stderr that has all the words."""
    assert run.code == 2, (run.code, run.output, run.errors)
    message = run.errors.splitlines()[-1]
    assert ": error: " in message and len(run.errors.splitlines()) == 1, run.errors
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


def save_tiny_model(folder, **config):
    """Save a tiny random Llama and a tokenizer of which every word w0, w1 … is one token; returns the folder."""
    tiny_llama(**config).save_pretrained(folder)
    tokenizer_of(WORDS, "w0").save_pretrained(folder)
    return folder


def random_text(tokens, seed=0):
    """A text of so many tokens of the tiny model."""
    return " ".join(WORDS[i] for i in random_ids(tokens, seed=seed).tolist())
