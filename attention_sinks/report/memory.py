"""Whether the weights of a model fit into memory, asked before they are read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from accelerate.utils import get_max_memory  # type: ignore[import-untyped]
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from .report import ModelReport
from .source import Source, read_config

INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that say how large the weights of a checkpoint of several files are."""

BYTES = {"float32": 4, "float64": 8}
"""Name of a dtype -> bytes of one weight. Others have two."""


def check_memory(source: Source, report: ModelReport, dtype: str, cure: str, device: str | None = None) -> None:
    """Raise MemoryError, with the cure, when the weights of a model do not fit into the memory that is free now.

    Parameters
    ----------
    source : Source
        Where the model lies.
    report : ModelReport
        What is known of it.
    dtype : str
        The dtype in which the weights will be loaded, or "auto" for the one in which they are stored.
    cure : str
        What helps besides another model or machine.
    device : str, optional
        The one device that they will be on. The default is all there are.
    """
    needed = _needed(source, report, read_config(source), dtype)
    free = _free(device)
    if needed > free:
        raise MemoryError(
            f"the weights of {source.name!r} take {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB of memory are free; "
            f"{cure}, or take a smaller or a quantised model or a larger machine."
        )


def _free(device: str | None) -> int:
    """Return the bytes that are free on a device, or on all."""
    free = {str(name): int(size) for name, size in get_max_memory().items()}  # accelerators have numbers
    kind, _, number = (device or "").partition(":")
    name = kind if kind in free else number or "0"
    return free[name] if device not in (None, "auto") and name in free else sum(free.values())


def _needed(source: Source, report: ModelReport, config: PreTrainedConfig, dtype: str) -> int:
    """Return the bytes of the weights: those that the index of the checkpoint has, or else those of all parameters."""
    stored = str(config.dtype or "float32").removeprefix("torch.")
    if dtype in ("auto", stored) and source.gguf_file is None:
        for name in INDICES:
            with suppress(OSError):  # it has no such file, or is a name that the hub cannot be asked about now
                path = cached_file(source.place, name)
                return int(json.loads(Path(str(path)).read_text(encoding="utf-8"))["metadata"]["total_size"])
    return report.parameters * BYTES.get(stored if dtype == "auto" else dtype, 2)
