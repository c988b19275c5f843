"""`attention-sinks check`: whether a model streams, and what that takes."""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from .failing import DISAGREES, one_line_for_bad_input
from .imports import imports_that_stay

if TYPE_CHECKING:
    from ..report.report import ModelReport
    from ..verification import Verification

EXAMPLES = """\b
Examples:
  attention-sinks check HuggingFaceTB/SmolLM2-135M-Instruct
  attention-sinks check models/my-model.gguf --window 508 --window 8000
  attention-sinks check models/my-model --run
  attention-sinks check models/my-model --json | jq .largest_window
"""


class Dtype(str, Enum):
    """The dtypes that weights can be loaded in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class CacheDtypeOption(str, Enum):
    """The dtypes that caches can have; they are those of `settings.CACHE_DTYPES`, which takes longer to import."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"
    int8_int4 = "int8-int4"


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name on the hub, folder or .gguf file.")],
    sinks: Annotated[int, typer.Option(metavar="N", min=0, help="First tokens that are never evicted.")] = 4,
    window: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="A window to size; may be given again.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Load it and compare it with plain Transformers.")] = False,
    dtype: Annotated[Dtype, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16 for --run.")] = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Say whether a model streams, and what it takes.

    The config and the tokenizer tell. No weights are read, but with --run.
    """
    with one_line_for_bad_input("check"):
        with imports_that_stay():
            from ..report.report import report_on
            from ..report.source import find_source
            from . import tables
            from .quiet import quiet_libraries

        with quiet_libraries():
            report = report_on(find_source(model), sinks)
            windows = tables.windows_to_show(report, window)
            verification = _run(report, dtype.value) if run else None
    if as_json:
        typer.echo(json.dumps(tables.as_data(report, windows, verification)))
    else:
        tables.show(report, windows, verification)
    if verification is not None and not verification.agrees:
        raise typer.Exit(DISAGREES)


def _run(report: ModelReport, dtype: str) -> Verification:
    """Load the model and compare a few tokens with plain Transformers."""
    from ..verification import verify_attention_sinks
    from .loading import load_model

    return verify_attention_sinks(load_model(report, "leave --run out, which needs no weights", report.window, dtype))
