"""Where the rows of a batch stand in their streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Counters:
    """Where every row of a batch stands in its own stream. Immutable: a call makes the next one.

    Attributes
    ----------
    seen : tuple of int
        Real tokens each row has fed so far; the stream position t of its next token.
    origin : tuple of int
        What is subtracted from stream positions before they become angles, so that angles stay small.
    """

    seen: tuple[int, ...]
    origin: tuple[int, ...]

    @classmethod
    def empty(cls, batch_size: int) -> Counters:
        return cls((0,) * batch_size, (0,) * batch_size)

    def __len__(self) -> int:
        return len(self.seen)

    def advance(self, counts: Sequence[int]) -> Counters:
        """The counters after each row has fed `counts[row]` more real tokens."""
        return replace(self, seen=tuple([t + n for t, n in zip(self.seen, counts, strict=True)]))

    def select(self, indices: list[int]) -> Counters:
        """The counters of the rows at `indices`, in that order, with repetitions."""
        return Counters(tuple(self.seen[i] for i in indices), tuple(self.origin[i] for i in indices))

    def back(self, counts: Sequence[int], room: int) -> Counters:
        """The counters before each row fed its last `counts[row]` tokens; origins stay as low as `shift_for` leaves
        them."""
        seen = tuple(t - n for t, n in zip(self.seen, counts, strict=True))
        return Counters(seen, tuple(min(o, max(0, t - room)) for t, o in zip(seen, self.origin, strict=True)))

    def shift_for(self, new_tokens: int, room: int) -> tuple[int, ...]:
        """By how much each origin has to move before a call of `new_tokens`; all zero when there is room.

        Model positions t - origin are kept below a limit of 2 (room + 1), `room` being what the widest layer caches. At
        the limit the origin moves so that the query is back at position `room`. A key is moved about once in its life,
        so rounding errors do not add up.
        """
        ahead = [t - o for t, o in zip(self.seen, self.origin, strict=True)]
        if max(ahead) + new_tokens - 1 < 2 * (room + 1):
            return (0,) * len(self)
        return tuple(max(0, position - room) for position in ahead)

    def rebase(self, shift: Sequence[int]) -> Counters:
        """The counters with each origin moved by `shift[row]`."""
        return replace(self, origin=tuple(o + s for o, s in zip(self.origin, shift, strict=True)))
