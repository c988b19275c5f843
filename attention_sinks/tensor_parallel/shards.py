"""The tensors of a whole cache, and the part of them that each process has: the heads of its shard of the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch

from ..architecture.setup import setup_of

Tensors = dict[str, torch.Tensor]
"""Those of the snapshot of a cache, `layers.INDEX.NUMBER`, each [rows, heads, slots, size of a head]."""


def cut_layers(model: Any) -> set[int]:
    """Return the indices of the layers of which every process has some heads; it has all of the other layers.

    Raises
    ------
    NotImplementedError
        When the projections of a layer do not tell.
    """
    cut, setup = set(), setup_of(model)
    known = {index for index, kind in enumerate(setup.kinds) if not kind.attends}
    for module in setup.model.modules():
        index, weights = module.__dict__.get("layer_idx"), [_weight(module, name) for name in ("k_proj", "v_proj")]
        if not isinstance(index, int) or any(weight is None for weight in weights):
            continue
        known.add(index)
        if any(getattr(weight, "to_local", weight.detach)().shape != weight.shape for weight in weights):
            cut.add(index)
    if len(known) < len(setup.kinds):
        raise NotImplementedError(
            f"conversations of a {setup.model.config.model_type!r} model that several processes share cannot be "
            "saved: its projections do not tell which heads each process has; leave sessions out."
        )
    return cut


def _weight(module: Any, name: str) -> Any:
    return getattr(getattr(module, name, None), "weight", None)


def part_of(tensors: Tensors, cut: set[int], rank: int, count: int) -> Tensors:
    """Return what the process `rank`, of `count`, has of the tensors of a whole cache."""
    return {name: _part(tensor, rank, count) if _layer(name) in cut else tensor for name, tensor in tensors.items()}


def _part(tensor: torch.Tensor, rank: int, count: int) -> torch.Tensor:
    if tensor.dim() != 4 or tensor.shape[1] % count:
        return tensor  # of no such cache, as will be found
    return tensor.chunk(count, dim=1)[rank].contiguous()


def joined(parts: Sequence[Tensors], cut: set[int]) -> Tensors:
    """Return the tensors of the whole cache of which the processes have `parts`, in the order of their ranks."""
    first = parts[0]
    return {
        name: torch.cat([part[name].to("cpu") for part in parts], dim=1) if _layer(name) in cut else first[name]
        for name in first
    }


def _layer(name: str) -> int | None:
    """Return the index of the layer that a tensor of a snapshot belongs to; None where the name is another."""
    kind, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    return int(index) if kind == "layers" and index.isdecimal() else None


def as_bytes(tensors: Tensors) -> bytes:
    """Return tensors as they are sent."""
    buffer = io.BytesIO()
    torch.save({name: tensor.to("cpu") for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Tensors:
    """Return tensors that were sent, on the CPU."""
    tensors: Tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors
