"""The counters of one cache: where its streams stand and how far they can go back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .rows import Rows
from .trail import Trail


@dataclass
class Streams:
    """The counters of one cache, shared by its layers.

    Attributes
    ----------
    room : int
        Tokens a row may have before any layer loses one.
    rows : Rows or None
        None until the first call fixes the batch size.
    columns : int
        Input columns seen, padding included.
    trail : Trail or None
        What is known of the last columns; None like `rows`.
    """

    room: int
    rows: Rows | None = None
    columns: int = 0
    trail: Trail | None = None

    @property
    def seen(self) -> tuple[int, ...]:
        return self.rows.seen if self.rows else ()

    @property
    def returnable(self) -> int:
        """How many of the last columns can be taken back."""
        return self.trail.available(self.rows) if self.rows else 0

    def advance(self, rows: Rows, columns: int, real: torch.Tensor | None, recording: bool) -> None:
        """A call of `columns` columns, of which `real` are tokens (None: all), leaves the streams at `rows`."""
        before, trail = self.rows, self.trail
        if before is None:
            before, trail = Rows.empty(len(rows)), Trail.empty(len(rows), self.room)
        self.trail = trail.advance(before, rows, columns, real, recording)
        self.rows, self.columns = rows, self.columns + columns

    def back(self, rows: Rows, columns: int) -> None:
        """The last `columns` columns have been taken back, which leaves the streams at `rows`."""
        self.rows, self.columns, self.trail = rows, self.columns - columns, self.trail.back(rows, columns)

    def forget(self, columns: int) -> None:
        """Of what was recorded no more than the last `columns` columns is kept."""
        if self.rows is not None:
            self.trail = self.trail.with_log_of(columns, self.rows)

    def lose_evicted(self) -> None:
        """A call that broke off has written over the tokens evicted last."""
        if self.rows is not None:
            self.trail = self.trail.without_evicted(self.rows)

    def select(self, indices: list[int]) -> None:
        if self.rows is not None:
            self.rows, self.trail = self.rows.select(indices), self.trail.select(indices)

    def clear(self) -> None:
        self.rows, self.columns, self.trail = None, 0, None
