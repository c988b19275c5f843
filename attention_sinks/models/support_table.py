"""Write the table of supported architectures in Markdown, for the installed Transformers.

`python -m attention_sinks.models.support_table` prints it. With the path of a file, it also writes the table between
the markers in that file.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from transformers import CONFIG_MAPPING

from ..versions import transformers_release
from .facts import implementations_of, notes_of, positions_of
from .registry import ARCHITECTURES, WRAPPERS, supported_model_types

RELEASE = "For Transformers {}.{}, each type as its config is by default."
BEGIN, END = "<!-- begin of the support table -->", "<!-- end of the support table -->"
HEADINGS = ("`config.model_type`", "positions", "attention implementations", "notes")


def support_table() -> str:
    """Return the table. Model types with the same facts share a row, and rows with the most types come first."""
    types = defaultdict(list)
    for model_type in sorted(ARCHITECTURES):
        if model_type in supported_model_types():
            types[_facts(model_type)].append(f"`{model_type}`")
    rows = sorted(types.items(), key=lambda row: (-len(row[1]), row[1]))
    lines = [HEADINGS, ("---",) * len(HEADINGS), *((", ".join(names), *facts) for facts, names in rows)]
    wrappers = ", ".join(f"`{model_type}`" for model_type in supported_model_types() if model_type in WRAPPERS)
    also = f"Models for more than text stream by the decoder inside: {wrappers}."
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", also])


def updated(page: str) -> str:
    """Return `page` with the table between its markers.

    Raises
    ------
    ValueError
        When `page` lacks one of the markers or has them in the wrong order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page must have the lines {BEGIN!r} and {END!r}; put them where the table belongs.")
    return "\n".join([before + BEGIN, support_table(), "", RELEASE.format(*transformers_release()), END + after])


def _facts(model_type: str) -> tuple[str, str, str]:
    """Return positions, attention implementations and notes of a type, as its config is by default."""
    architecture, config = ARCHITECTURES[model_type], CONFIG_MAPPING[model_type]()
    decoder = config.get_text_config(decoder=True)
    implementations, notes = implementations_of(architecture, config), notes_of(architecture, decoder)
    return positions_of(architecture, decoder), ", ".join(implementations), "; ".join(notes)


if __name__ == "__main__":
    print(support_table())
    for path in map(Path, sys.argv[1:]):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
