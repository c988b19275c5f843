"""Write the table of supported architectures in Markdown, for the installed Transformers.

`python -m attention_sinks.models.support_table` prints it. With the path of a file, it also writes the table between
the markers in that file.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedConfig

from ..architecture.spec import Architecture
from ..legacy.btlm.streaming_btlm import StoredSlopes
from ..positions.rotary import NEIGHBOURS
from ..positions.schemes import LinearBias, NoPositions, Rope, RopeTable
from ..versions import transformers_release
from .registry import ARCHITECTURES, WRAPPERS, supported_model_types

RELEASE = "For Transformers {}.{}, each type as its config is by default."
BEGIN, END = "<!-- begin of the support table -->", "<!-- end of the support table -->"
HEADINGS = ("`config.model_type`", "positions", "attention implementations", "notes")
FLAGS = {
    "eager": None,
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""Attention implementation -> the flag by which a model class of Transformers says that it has it. All have eager."""


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
    notes = [*filter(None, [architecture.notes]), *_notes(architecture, decoder)]
    return _positions(architecture, decoder), ", ".join(_implementations(architecture, config)), "; ".join(notes)


def _positions(architecture: Architecture, config: PreTrainedConfig) -> str:
    """Say how the layers know positions."""
    scheme = architecture.scheme(config)
    if not isinstance(scheme, Rope):
        names = {RopeTable: "rotary (neighbours)", LinearBias: "ALiBi", StoredSlopes: "ALiBi", NoPositions: "none"}
        return names[type(scheme)]
    rotates = [scheme.rotates(config, index) for index in range(config.num_hidden_layers)]
    pairing = "neighbours" if scheme.pairing.spread is NEIGHBOURS.spread else "halves"
    return f"rotary ({pairing})" + ("" if all(rotates) else ", in some layers none")


def _implementations(architecture: Architecture, config: PreTrainedConfig) -> list[str]:
    """Return the attention implementations that the model class has and that can stream."""
    kind = type(config)
    model_class: Any = (MODEL_FOR_CAUSAL_LM_MAPPING if kind in MODEL_FOR_CAUSAL_LM_MAPPING else MODEL_MAPPING)[kind]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    has = [name for name, flag in FLAGS.items() if flag is None or getattr(model_class, flag)]
    return [name for name in has if _streams_with(architecture, config, name)]


def _streams_with(architecture: Architecture, config: PreTrainedConfig, implementation: str) -> bool:
    try:
        config._attn_implementation = implementation
    except ValueError:  # some configs refuse what the flag of their class allows
        return False
    return architecture.streams(config)


def _notes(architecture: Architecture, config: PreTrainedConfig) -> list[str]:
    """Return the notes that follow from the facts."""
    kinds = architecture.kinds(config)
    limited, indexed = architecture.limit(config) is not None, any(kind.indexed for kind in kinds)
    sliding = {bool(kind.window) for kind in kinds if kind.attends}
    notes = {
        "latent attention": architecture.rotated == "values",
        "where all layers slide natively, sinks and window stay within that": sliding == {True},
        "sliding layers keep their own window": sliding == {True, False},
        "chunked layers keep their chunks": any(kind.chunk for kind in kinds),
        "linear layers keep their own states": any(kind.states for kind in kinds),
        "some layers share keys": any(kind.attends and not kind.stores for kind in kinds),
        "S + W + 1 within its table of positions": limited and not indexed,
        "S + W + 1 up to where its indexer leaves keys out": indexed,
    }
    return [note for note, holds in notes.items() if holds]


if __name__ == "__main__":
    print(support_table())
    for path in map(Path, sys.argv[1:]):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
