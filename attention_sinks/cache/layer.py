"""What a sink cache asks of each of its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..plan.counters import Counters
from ..plan.reach import Reach
from ..positions.schemes import Position


class Layer:
    """A layer of a sink cache does what concerns it, and nothing for the rest.

    Attributes
    ----------
    reach : Reach or None
        What its queries see; None for a layer without keys and values of its own.
    rotated : {"keys", "values"} or None
        What of the layer is rotated by positions; None: nothing.
    keeps_states : bool
        Whether it keeps states that are not per token, which can be neither taken back nor saved.
    """

    is_croppable = True
    reach: Reach | None = None
    rotated: str | None = None
    keeps_states = False

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything the layer stores, but for its undo log."""
        return ()

    @property
    def undo_tensors(self) -> tuple[torch.Tensor, ...]:
        """What the layer keeps in order to take tokens back."""
        return ()

    def begin(self) -> None:
        """A call begins: remember what it changes in place."""

    def rebase(self, position: Position, shift: torch.Tensor) -> None:
        """Rotate recent keys back by `shift` [R, 1], as far as the origin of their rows moves."""

    def commit(self) -> None:
        """The call is done: keep what it brought."""

    def discard(self) -> None:
        """The call broke off: be as before it."""

    def record(self, recording: bool) -> None:
        """From now on keep what leaves the ring, or let go of what was kept."""

    def trim(self, columns: int) -> None:
        """Keep of what was recorded no more than the last `columns` columns."""

    def take_back(self, before: Counters, after: Counters, position: Position) -> None:
        """Take the streams from `before` back to `after`, where they stood some columns ago."""

    def restore(self, tensors: Sequence[torch.Tensor]) -> None:
        """Hold copies of `tensors`, which a layer like this one stored."""

    def reset(self) -> None:
        """Forget everything."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` [new batch], in that order."""


class EmptyLayer(Layer):
    """A layer without a cache of its own: it has no attention, or reads the keys and values of an earlier one."""
