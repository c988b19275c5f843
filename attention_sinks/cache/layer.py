"""The methods that a sink cache calls on each of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from ..plan.counters import Counters
from ..plan.reach import Reach
from ..positions.schemes import Position


def nothing() -> None:
    """Do nothing."""


def refuse_plain_model() -> NoReturn:
    """Raise RuntimeError: a model without attention sinks, which reaches a cache by itself, has been given ours."""
    raise RuntimeError(
        "a cache of attention sinks was given to a model without them; call inject_attention_sinks(model), or give the "
        "model a cache of its own."
    )


class Layer:
    """A layer of a sink cache. It overrides the methods that concern it; the others do nothing.

    An exception may strike `commit`, `discard`, `record`, `trim`, `reset`, `select` and what `take_back` and
    `replacing` return at any line. They are then called again, with the same arguments.

    Attributes
    ----------
    reach : Reach or None
        What its queries see. A layer without keys and values of its own has None.
    keeps_states : bool
        Whether it keeps states that are not per token, which can be neither taken back nor saved.
    """

    is_croppable = True
    reach: Reach | None = None
    keeps_states = False

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything that the layer stores, without its undo log."""
        return ()

    @property
    def undo_tensors(self) -> tuple[torch.Tensor, ...]:
        """What the layer keeps in order to take tokens back."""
        return ()

    # ---- a call

    def begin(self) -> None:
        """Remember what the call that begins now may change in place."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values and return those to attend to."""
        raise NotImplementedError(f"a {type(self).__name__} has no keys and values of its own.")

    def rebase(self, position: Position, shift: torch.Tensor) -> None:
        """Rotate recent keys back by `shift` [R, 1], which is how far the origins of the rows move."""

    def commit(self) -> None:
        """Keep what the call brought, which is done."""

    def discard(self) -> None:
        """Go back to what was there before the call, which broke off."""

    # ---- between calls

    def record(self, recording: bool) -> None:
        """From now on keep what leaves the ring, or let go of what was kept."""

    def trim(self, columns: int) -> None:
        """Keep no more of what was recorded than the last `columns` columns."""

    def take_back(self, before: Counters, after: Counters, position: Position) -> Callable[[], None]:
        """Return what takes the layer back from `before` to `after`, where the streams stood some columns ago."""
        return nothing

    def hold_rows(self, like: Layer, batch_size: int) -> None:
        """Hold `batch_size` rows without tokens, in buffers as the layer `like` of another cache has them."""

    def replacing(self, rows: torch.Tensor, source: Layer | None, taken: torch.Tensor) -> list[Callable[[], None]]:
        """Return what makes the rows at `rows` [n] copies of the rows at `taken` [n] of `source`, in place.

        The copies are made at once, so that `source` may go on before they are written. Where `source` is None, the
        rows get what they hold before their first token.
        """
        return []

    def restore(self, tensors: Sequence[torch.Tensor]) -> None:
        """Hold copies of `tensors`, which a layer like this one stored."""

    def reset(self) -> None:
        """Forget everything."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows at `beam_idx` [batch], in that order."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` [new batch], in that order."""
        self.select(indices, object())

    def select(self, indices: torch.Tensor, act: object) -> None:
        """Keep the rows at `indices` [new batch], in that order, unless the layer has done so in the same `act`."""


class EmptyLayer(Layer):
    """A layer without a cache of its own: it has no attention, or it reads the keys and values of an earlier layer."""
