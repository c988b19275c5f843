"""A table says what the layers of a model see and how they know positions, under one pair of S and W."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..positions.schemes import Position, rotates
from .reach import Reach


@dataclass(frozen=True)
class LayerTable:
    """One line for every layer. A model makes one table for each pair of S and W, and all its calls share it.

    Parameters
    ----------
    with_sinks : Reach
        What the queries of layers with sinks see.
    reaches : tuple of Reach or None
        What the queries of each layer see; None for a layer without attention.
    positions : tuple of Position
        How each layer knows where its keys are.
    """

    with_sinks: Reach
    reaches: tuple[Reach | None, ...]
    positions: tuple[Position, ...]

    def __post_init__(self) -> None:
        """Work everything out now. Until Python 3.11 a `cached_property` takes a lock, which would break a graph."""
        for name in ("distinct_reaches", "plan_index", "is_uniform", "room", "facts"):
            getattr(self, name)

    @cached_property
    def distinct_reaches(self) -> tuple[Reach, ...]:
        """Each reach once. That of layers with sinks is the first. A call has one plan for each."""
        return tuple(dict.fromkeys((self.with_sinks, *filter(None, self.reaches))))

    @cached_property
    def plan_index(self) -> tuple[int | None, ...]:
        """For each layer, the index of its reach among the distinct ones; None for a layer without attention."""
        return tuple(None if reach is None else self.distinct_reaches.index(reach) for reach in self.reaches)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For each layer a number. Layers that share it are alike in what they see and in how they know positions."""
        kinds = [(reach, id(position)) for reach, position in zip(self.reaches, self.positions, strict=True)]
        return tuple(kinds.index(kind) for kind in kinds)

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all layers are alike."""
        return not any(self.groups)

    @cached_property
    def facts(self) -> tuple[tuple[Reach | None, bool, Any], ...]:
        """For each layer what it sees, whether its keys are rotated and what its positions follow from.

        They are plain data, without a tensor.
        """
        known = {id(position): position.facts for position in self.positions if position is not None}
        lines = zip(self.reaches, self.positions, strict=True)
        return tuple((reach, rotates(position), known.get(id(position))) for reach, position in lines)

    @cached_property
    def room(self) -> int:
        """The most tokens that any layer caches."""
        return max(reach.cached_size for reach in self.distinct_reaches)
