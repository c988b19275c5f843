"""The counters of one cache: where its streams stand and how far they can go back."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..plan.counters import Counters
from .device_counters import DeviceCounters
from .history import History


class Standing(NamedTuple):
    """Where the streams of a batch stand after a call."""

    rows: Counters
    columns: int
    """Input columns seen, padding included."""
    trail: History
    """What is known of the last columns."""


class StreamState:
    """The counters of one cache, shared by its layers.

    Attributes
    ----------
    room : int
        Tokens a row may have before any layer loses one.
    static : DeviceCounters or None
        The same counters as tensors, for compiled steps; None until the first call fixes the batch size.
    ahead : bool
        Whether compiled steps have moved the tensors on since the host last looked.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.static: DeviceCounters | None = None
        self.ahead = False
        self._standing: Standing | None = None

    @property
    def standing(self) -> Standing | None:
        """None until the first call fixes the batch size."""
        if self.ahead:
            self.ahead = False
            rows, columns, real = self.static.read()
            self._standing = self._after(rows, columns, real, recording=False)
            self.static.set(rows)
        return self._standing

    @property
    def rows(self) -> Counters | None:
        return self.standing.rows if self.standing else None

    @property
    def columns(self) -> int:
        return self.standing.columns if self.standing else 0

    @property
    def trail(self) -> History | None:
        return self.standing.trail if self.standing else None

    @property
    def seen(self) -> tuple[int, ...]:
        return self.rows.seen if self.rows else ()

    @property
    def returnable(self) -> int:
        """How many of the last columns can be taken back."""
        return self.trail.available(self.rows) if self.rows else 0

    def stand(self, standing: Standing | None, device: torch.device | None = None) -> None:
        """The streams stand at `standing` from now on; `device` is where compiled steps would count."""
        self._standing, self.ahead = standing, False
        if standing is None:
            self.static = None
        elif self.static is not None and self.static.fits(standing.rows):
            self.static.set(standing.rows)
        else:
            device = self.static.seen.device if device is None else device
            self.static = DeviceCounters(standing.rows, self.room, device)

    def advance(self, rows: Counters, columns: int, real: torch.Tensor | None, recording: bool, device) -> None:
        """A call of `columns` columns, of which `real` are tokens (None: all), leaves the streams at `rows`."""
        self.stand(self._after(rows, columns, real, recording), device)

    def _after(self, rows: Counters, columns: int, real: torch.Tensor | None, recording: bool) -> Standing:
        before = self._standing or Standing(Counters.empty(len(rows)), 0, History.empty(len(rows), self.room))
        trail = before.trail.advance(before.rows, rows, columns, real, recording)
        return Standing(rows, before.columns + columns, trail)

    def back(self, rows: Counters, columns: int) -> None:
        """The last `columns` columns have been taken back, which leaves the streams at `rows`."""
        self.stand(Standing(rows, self.columns - columns, self.trail.back(rows, columns)))

    def forget(self, columns: int) -> None:
        """Of what was recorded no more than the last `columns` columns is kept."""
        if self.standing is not None:
            self._standing = self.standing._replace(trail=self.trail.with_log_of(columns, self.rows))

    def lose_evicted(self) -> None:
        """A call that broke off has written over the tokens evicted last."""
        if self.standing is not None:
            self._standing = self.standing._replace(trail=self.trail.without_evicted(self.rows))

    def select(self, indices: list[int]) -> None:
        if self.standing is not None:
            rows, columns, trail = self.standing
            self.stand(Standing(rows.select(indices), columns, trail.select(indices)))

    def clear(self) -> None:
        self.stand(None)
