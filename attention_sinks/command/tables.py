"""What `attention-sinks check` says: as a table for people, as plain data for programs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..report.report import ModelReport
from ..settings import SinkSettings
from ..verification import Verification
from .loading import check_window

WINDOWS = (252, 1020, 4092)
"""Windows of which the size is told. With 4 sinks, a cache then has 256, 1,024 or 4,096 tokens."""

WIDTH = 120
"""Columns of what does not go to a terminal."""


def windows_to_show(report: ModelReport, asked: Sequence[int] | None) -> list[int]:
    """Return the windows of which the size is told: those asked for, or else some usual ones and the largest.

    Raises
    ------
    ValueError
        When one that was asked for is larger than the largest that is of use.
    """
    if asked:
        check_window(report, max(asked))
        return sorted(set(asked))
    largest = report.largest_window
    return sorted({*(size for size in WINDOWS if largest is None or size < largest), *([largest] if largest else [])})


def as_data(report: ModelReport, windows: Sequence[int], verification: Verification | None) -> dict[str, Any]:
    """Return everything as what JSON can hold."""
    data = {"streams": True, **report.as_data(), "bytes_per_conversation": {}}
    for dtype, footprint in report.footprints.items():
        data["bytes_per_conversation"][dtype] = {str(size): footprint.at(size) for size in windows}
    data["load"] = loading(report)
    data["chat"] = chatting(report)
    if verification is not None:
        error = verification.error and f"{type(verification.error).__name__}: {verification.error}"
        data["verification"] = {
            "agrees": verification.agrees,
            "differences": verification.differences,
            "tolerance": verification.tolerance,
            "error": error,
        }
    return data


def show(report: ModelReport, windows: Sequence[int], verification: Verification | None) -> None:
    """Print everything to stdout, in colours only where that is a terminal."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(f"{report.source.name} streams.", style="bold", markup=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(report).items():
        facts.add_row(name, value)
    console.print(facts, markup=False)
    console.print(_sizes(report, windows))
    title, line = ("Load it with", loading(report)) if report.chat_problem else ("Chat with it by", chatting(report))
    console.print(title, f"  {line}", sep="\n", markup=False, soft_wrap=True)
    if verification is not None:
        console.print(str(verification), style=None if verification.agrees else "bold red", markup=False)


def _facts(report: ModelReport) -> dict[str, str]:
    """Return what is said in lines, by what it is about."""
    count = sum(map(len, report.layers.values()))
    layers = [f"{len(indices)} of {count} keep {content}" for content, indices in report.layers.items()]
    largest = "any" if report.largest_window is None else f"{report.largest_window:,} tokens"
    facts = {
        "type": f"{report.model_type}, {report.parameters:,} weights (Transformers {report.transformers})",
        "positions": report.positions,
        "layers": "; ".join(layers),
        "attention": ", ".join(report.attention),
        "largest useful window": f"{largest}: {report.largest_window_reason}",
        "chat template": "streams" if report.chat_problem is None else f"does not stream: {report.chat_problem}",
    }
    return facts | ({"notes": "; ".join(report.notes)} if report.notes else {})


def _sizes(report: ModelReport, windows: Sequence[int]) -> Table:
    """Return the table of sizes by window and dtype."""
    title = f"One conversation, with {report.sink_size} sinks"
    rounds = "int8" in report.footprints
    caption = "int8 and int8-int4 are dtypes of the cache, beside a model of 16 bits." if rounds else None
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("window (tokens)", justify="right")
    for dtype in report.footprints:
        table.add_column("float16, bfloat16" if dtype == "bfloat16" else dtype, justify="right")
    for size in windows:
        table.add_row(f"{size:,}", *(_readable(footprint.at(size)) for footprint in report.footprints.values()))
    return table


def _readable(size: int) -> str:
    """Return a number of bytes in a unit that fits it."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:,.1f} {unit}"
    return f"{size} bytes"


def loading(report: ModelReport) -> str:
    """Return a line of Python that loads the model, with the window to begin with."""
    settings = {"attention_sink_window_size": report.window}
    if report.sink_size != SinkSettings.sink_size:
        settings["attention_sink_size"] = report.sink_size
    arguments = [repr(report.source.name), *(f"{name}={value!r}" for name, value in settings.items())]
    return f"AutoModelForCausalLM.from_pretrained({', '.join(arguments)})"


def chatting(report: ModelReport) -> str | None:
    """Return the command that chats with the model; None where its chat template cannot stream."""
    if report.chat_problem is not None:
        return None
    sinks = [] if report.sink_size == SinkSettings.sink_size else ["--sinks", str(report.sink_size)]
    return shlex.join(["attention-sinks", "chat", report.source.name, *sinks])
