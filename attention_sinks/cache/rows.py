"""Rows that move between caches: what must be alike for it, rows written in place, and one cache made of many."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch

from ..plan.counters import Counters
from .layer_stack import LayerStack, make_all
from .stream_state import History, Standing, joined, selected

Part = tuple[LayerStack, Sequence[int]]
"""The layers of a cache and the indices of some of its rows."""


def row_indices(name: str, rows: Iterable[Any], batch_size: int) -> list[int]:
    """Return `rows` as Python numbers, each once; `name` is what the caller calls them.

    Raises
    ------
    TypeError
        When one of them is no whole number.
    ValueError
        When there is no such row.
    """
    found: list[int] = []
    for row in _as_list(name, rows):
        if isinstance(row, bool) or (isinstance(row, torch.Tensor) and row.dtype == torch.bool):
            raise TypeError(f"{name} has {row!r}; pass numbers of rows, such as mask.nonzero()[:, 0] of a mask.")
        try:
            found.append(operator.index(row))
        except TypeError:
            raise TypeError(f"{name} has {row!r:.80}, which is no whole number; pass numbers of rows.") from None
        if not 0 <= found[-1] < batch_size:
            raise ValueError(f"{name}: there is no row {found[-1]}; " + _known_rows(batch_size))
    return list(dict.fromkeys(found))


def _as_list(name: str, rows: Iterable[Any]) -> list[Any]:
    try:
        return list(rows)
    except TypeError:
        raise TypeError(f"{name}={rows!r:.80} is no list; pass a list, such as [0, 2].") from None


def _known_rows(batch_size: int) -> str:
    if batch_size:
        return f"cache has {batch_size} rows, use 0 to {batch_size - 1}."
    return "cache has no rows before its first call; feed it first, or make one with AttentionSinkKVCache.stack([…])."


def check_layers_fit(own: LayerStack, other: LayerStack, name: str) -> None:
    """Refuse rows of the cache `name`, whose layers are `other`, where the layers `own` cannot hold them as they are.

    Raises
    ------
    ValueError
        When one of them records and the other does not, or their keys, values or states have other dtypes or shapes.
    """
    if own.is_recording != other.is_recording:
        records, does_not = ("cache", name) if own.is_recording else (name, "cache")
        raise ValueError(
            f"{records} records what leaves its window and {does_not} does not; call activate_past_recording() or "
            "deactivate_past_recording() on one of them first."
        )
    for index, layers in enumerate(zip(own.layers, other.layers, strict=True)):
        holds, brings = ([(tensor.dtype, tensor.shape[1:]) for tensor in layer.tensors] for layer in layers)
        if holds != brings:
            raise ValueError(
                f"layer {index} of {name} holds {_in_words(brings)}, that of cache {_in_words(holds)}; rows are not "
                "converted, so use caches whose first calls had one dtype (with autocast or without)."
            )


def _check_layout(stack: LayerStack) -> None:
    """Refuse to move rows where a layer keeps something else than rows in the first dimension of a tensor."""
    for index, layer in enumerate(stack.layers):
        for tensor in layer.tensors:
            if tensor.shape[:1] != (len(stack.streams.seen),):
                raise NotImplementedError(
                    f"rows cannot move: layer {index} keeps a state of the shape {list(tensor.shape)}, whose first "
                    f"dimension is not that of {len(stack.streams.seen)} rows; use copy.deepcopy(cache) instead."
                )


def _in_words(kinds: Sequence[tuple[torch.dtype, torch.Size]]) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for dtype, shape in kinds) or "nothing"


def without_tokens(count: int, room: int) -> Standing:
    """Return where `count` rows stand that have seen no token; no layer loses one before they have `room` of them."""
    return Counters.empty(count), History.empty(count, room)


def replace_rows(stack: LayerStack, rows: Sequence[int], source: LayerStack | None) -> None:
    """Make each of `rows` a copy of the one row of `source`; None: a row that has seen no token. It is one act."""
    now = stack.streams.now()
    assert now is not None  # there are rows to replace
    for each in (stack,) if source is None else (stack, source):
        _check_layout(each)
    new = None if source is None else source.streams.now()
    new = without_tokens(1, stack.streams.room) if new is None else new
    size = len(now[0])
    standing = selected(joined([now, new]), [size if row in rows else row for row in range(size)])
    indices = torch.tensor(rows, dtype=torch.long, device="cpu")
    changes = _changes(stack, indices, source, torch.zeros_like(indices))
    stack.streams.change(standing, partial(make_all, changes))


def fill(stack: LayerStack, parts: Sequence[Part], like: LayerStack) -> None:
    """Let `stack`, that of a new cache, hold copies of the rows of `parts` in buffers like those of `like`.

    The rows of a part without tokens are rows that have seen none, whatever it holds.
    """
    for part, _ in parts:
        _check_layout(part)
    for layer, other in zip(stack.layers, like.layers, strict=True):
        layer.hold_rows(other, sum(len(rows) for _, rows in parts))
    standings, start = [], 0
    for part, rows in parts:
        now = part.streams.now()
        standings.append(without_tokens(len(rows), stack.streams.room) if now is None else selected(now, list(rows)))
        if any(part.streams.seen):
            places = torch.arange(start, start + len(rows), dtype=torch.long, device="cpu")
            make_all(_changes(stack, places, part, torch.tensor(rows, dtype=torch.long, device="cpu")))
        start += len(rows)
    assert like.streams.device is not None  # it has buffers
    stack.streams.change(joined(standings), stack.group_sinks, like.streams.device.seen.device)


def _changes(stack: LayerStack, rows: torch.Tensor, source: LayerStack | None, taken: torch.Tensor) -> list[Any]:
    """Return what makes the rows at `rows` of all layers copies of the rows at `taken` of those of `source`."""
    others = [None] * len(stack.layers) if source is None else source.layers
    pairs = zip(stack.layers, others, strict=True)
    return [change for layer, other in pairs for change in layer.replacing(rows, other, taken)]
