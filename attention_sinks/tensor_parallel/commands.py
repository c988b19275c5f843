"""What the leading process tells those that follow: commands, and what has come of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache


@dataclass(frozen=True)
class Command:
    """Something that all processes do alike.

    Attributes
    ----------
    action : str
        "new", "call", "fingerprint_of", "from_snapshot", or the name of a method of caches.
    arguments : list
        What `pack` has made of its arguments.
    number : int
        By which the cache is known that the action makes, if it makes one.
    forgotten : list of int
        Caches that nobody has any more.
    part : bytes or None
        Tensors for the one process that gets this.
    """

    action: str
    arguments: list[Any]
    number: int
    forgotten: list[int]
    part: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """What has come of a command in one process.

    Attributes
    ----------
    error : str or None
        What it has raised.
    seen : list of tuple
        How many tokens the rows of each cache among its arguments have seen.
    """

    error: str | None
    seen: list[tuple[int, ...]]

    def difference(self, other: Outcome) -> str | None:
        """Say what tells this outcome from that of another process, or return None when nothing does."""
        if (self.error is None) != (other.error is None):
            return f"it has ended with {self.error or 'no error'}, in the first process with {other.error or 'none'}"
        if self.seen != other.seen:
            return f"its streams have {self.seen} tokens, those of the first process {other.seen}"
        return None


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of numbers: token ids, a mask, rows. `on_cpu` says that it is not on the device of the model."""

    values: Any
    dtype: torch.dtype
    on_cpu: bool


@dataclass(frozen=True)
class PackedCache:
    """A cache, by its number."""

    number: int


def pack(value: Any, caches: list[Any]) -> Any:
    """Return arguments as they are sent, and add the caches among them to `caches`.

    Raises
    ------
    TypeError
        When something among them cannot be sent.
    """
    if isinstance(value, dict):
        return {name: pack(item, caches) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(item, caches) for item in value]
    if isinstance(value, torch.Tensor):
        return PackedTensor(value.tolist(), value.dtype, value.device.type == "cpu")
    if (number := getattr(value, "number", None)) is not None and isinstance(value, AttentionSinkKVCache):
        caches.append(value)
        return PackedCache(number)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{type(value).__name__} cannot be sent to the other processes that share the model; pass numbers, text, "
        "tensors, and caches of `Leader.cache_class`."
    )


def unpack(value: Any, known: dict[int, AttentionSinkKVCache], device: torch.device, caches: list[Any]) -> Any:
    """Return arguments that were sent, with the caches that are `known` by their numbers; add these to `caches`."""
    if isinstance(value, dict):
        return {name: unpack(item, known, device, caches) for name, item in value.items()}
    if isinstance(value, list):
        return [unpack(item, known, device, caches) for item in value]
    if isinstance(value, PackedTensor):
        return torch.tensor(value.values, dtype=value.dtype, device="cpu" if value.on_cpu else device)
    if isinstance(value, PackedCache):
        caches.append(known[value.number])
        return known[value.number]
    return value


def seen_by(caches: list[Any]) -> list[tuple[int, ...]]:
    """Return how many tokens the rows of each cache have seen."""
    return [tuple(cache.streams.seen) for cache in caches]


def called_modules(model: Any) -> dict[str, nn.Module]:
    """Return the modules of a model that are called from outside, by name."""
    return {"model": model, "base": setup_of(model).model}
