"""Counters say where the rows of a batch stand in their streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Counters:
    """Where every row of a batch stands in its own stream. They are immutable: each call makes new ones.

    Attributes
    ----------
    seen : tuple of int
        How many real tokens each row has fed so far, which is the stream position t of its next token.
    origin : tuple of int
        What is subtracted from the stream positions of each row before they become angles, so that angles stay small.
    """

    seen: tuple[int, ...]
    origin: tuple[int, ...]

    @classmethod
    def empty(cls, batch_size: int) -> Counters:
        """Return the counters of `batch_size` rows that have fed nothing."""
        return cls((0,) * batch_size, (0,) * batch_size)

    @classmethod
    def joined(cls, parts: Sequence[Counters]) -> Counters:
        """Return the counters of the rows of all `parts`, in their order."""
        return cls(tuple(t for part in parts for t in part.seen), tuple(o for part in parts for o in part.origin))

    def __len__(self) -> int:
        return len(self.seen)

    def advance(self, counts: Sequence[int]) -> Counters:
        """Return the counters after each row has fed `counts[row]` more real tokens."""
        return replace(self, seen=tuple([t + n for t, n in zip(self.seen, counts, strict=True)]))

    def select(self, indices: list[int]) -> Counters:
        """Return the counters of the rows at `indices`, in that order. A row may appear more than once."""
        return Counters(tuple(self.seen[i] for i in indices), tuple(self.origin[i] for i in indices))

    def back(self, counts: Sequence[int], room: int) -> Counters:
        """Return the counters before each row fed its last `counts[row]` tokens.

        An origin moves back where the next model position would be less than `room`, as `shift_for` would have left it.
        """
        seen = tuple(t - n for t, n in zip(self.seen, counts, strict=True))
        return Counters(seen, tuple(min(o, max(0, t - room)) for t, o in zip(seen, self.origin, strict=True)))

    def shift_for(self, new_tokens: int, room: int) -> tuple[int, ...]:
        """Return by how much each origin has to move before a call of `new_tokens` per row; zeros when there is room.

        Model positions t - origin stay below a limit of 2 (room + 1), where `room` is the most tokens that any layer
        caches. At the limit the origin moves so that the query is back at position `room`. A key is rotated again about
        once in its life, so rounding errors do not add up.
        """
        ahead = [t - o for t, o in zip(self.seen, self.origin, strict=True)]
        if max(ahead) + new_tokens - 1 < 2 * (room + 1):
            return (0,) * len(self)
        return tuple(max(0, position - room) for position in ahead)

    def rebase(self, shift: Sequence[int]) -> Counters:
        """Return the counters with each origin moved on by `shift[row]`."""
        return replace(self, origin=tuple(o + s for o, s in zip(self.origin, shift, strict=True)))
