"""How far the streams of a batch can go back: which of the last columns were tokens, and what their rows still hold."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import torch

from ..plan.counters import Counters

RECORDED_COLUMNS = 1024
"""While a cache records, what the last so many columns pushed out of it can be brought back; older columns cannot."""

COMMITTED_COLUMNS = 64
"""The same after `crop(0)`. A draft model with another tokenizer reaches some tokens behind what it has committed."""


@dataclass(frozen=True)
class History:
    """What is known of the last columns fed. Immutable: a call makes the next one.

    Attributes
    ----------
    room : int
        Tokens a row may have before any layer loses one (the smallest S+W+1).
    length : int
        How many columns are remembered, never more than `RECORDED_COLUMNS + room`.
    tokens : tuple of int
        One set of bits per row: bit i says whether the i-th newest column was a token of the row.
    floor : tuple of int
        The lowest stream position each row can return to.
    """

    room: int
    length: int
    tokens: tuple[int, ...]
    floor: tuple[int, ...]

    @classmethod
    def empty(cls, batch_size: int, room: int) -> History:
        return cls(room, 0, (0,) * batch_size, (0,) * batch_size)

    def advance(
        self, before: Counters, after: Counters, columns: int, real: torch.Tensor | None, recording: bool
    ) -> History:
        """After `columns` columns, of which `real` [batch, columns] bool are tokens (None: all); it may hold the newest
        of them alone, and older ones are then forgotten."""
        memory = RECORDED_COLUMNS + self.room
        new = _bits(real, columns, memory, len(self.tokens))
        remembered = (1 << memory) - 1
        tokens = tuple([(old << columns | bits) & remembered for old, bits in zip(self.tokens, new, strict=True)])
        length, floor = min(self.length + columns, memory), self.floor
        length = length if real is None or real.shape[1] == columns else real.shape[1]
        if recording:
            return History(self.room, length, tokens, floor).with_log_of(RECORDED_COLUMNS, after)
        if max(after.seen) > self.room:  # the slot of the token just evicted still holds it
            fed = zip(before.seen, after.seen, floor, strict=True)
            floor = tuple([t - 1 if t > max(self.room, t_before) else low for t_before, t, low in fed])
        return History(self.room, length, tokens, floor)

    def count(self, columns: int) -> tuple[int, ...]:
        """Tokens of each row among the last `columns` columns."""
        newest = (1 << columns) - 1
        return tuple((bits & newest).bit_count() for bits in self.tokens)

    def available(self, rows: Counters) -> int:
        """How many columns can be taken back at most."""
        held = [t - floor for t, floor in zip(rows.seen, self.floor, strict=True)]

        def too_far(columns: int) -> bool:
            return any(count > most for count, most in zip(self.count(columns), held, strict=True))

        return bisect_left(range(self.length + 1), True, key=too_far) - 1

    def back(self, rows: Counters, columns: int) -> History:
        """After `columns` columns have been taken back, which leaves the streams at `rows`."""
        floor = tuple(0 if t < self.room else low for t, low in zip(rows.seen, self.floor, strict=True))
        return History(self.room, self.length - columns, tuple(bits >> columns for bits in self.tokens), floor)

    def without_evicted(self, rows: Counters) -> History:
        """When the slots of the tokens evicted last have been written over by a call that broke off."""
        floor = tuple(max(low, t) if t >= self.room else low for t, low in zip(rows.seen, self.floor, strict=True))
        return replace(self, floor=floor)

    def with_log_of(self, columns: int, rows: Counters) -> History:
        """When only what the last `columns` columns pushed out is kept; by one a full row can go back without it."""
        floor = tuple(
            max(low, t - 1 - count) if t > self.room else low
            for t, low, count in zip(rows.seen, self.floor, self.count(columns), strict=True)
        )
        return replace(self, floor=floor)

    def select(self, indices: list[int]) -> History:
        return replace(self, tokens=tuple(self.tokens[i] for i in indices), floor=tuple(self.floor[i] for i in indices))


def _bits(real: torch.Tensor | None, columns: int, memory: int, batch_size: int) -> tuple[int, ...]:
    """The newest `memory` columns of each row as bits, the newest column lowest."""
    if real is None:
        return ((1 << min(columns, memory)) - 1,) * batch_size
    return tuple(int("".join("01"[token] for token in row), 2) for row in real[:, -memory:].tolist())
