"""The counters of a batch of streams: what a cache remembers besides keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Counters:
    """Where every row of a batch stands in its own stream. Immutable: a call makes the next one.

    Attributes
    ----------
    seen : tuple of int
        Real tokens each row has fed so far; the stream position t of its next token.
    base : tuple of int
        What is subtracted from stream positions before they are turned into angles, so that angles stay small.
    """

    seen: tuple[int, ...]
    base: tuple[int, ...]

    @classmethod
    def empty(cls, batch_size: int) -> Counters:
        return cls((0,) * batch_size, (0,) * batch_size)

    def __len__(self) -> int:
        return len(self.seen)

    def advance(self, counts: tuple[int, ...]) -> Counters:
        """The rows after each has fed `counts[row]` more real tokens."""
        return replace(self, seen=tuple(t + n for t, n in zip(self.seen, counts, strict=True)))

    def select(self, indices: list[int]) -> Counters:
        """The rows at `indices`, in that order, with repetitions."""
        return Counters(tuple(self.seen[i] for i in indices), tuple(self.base[i] for i in indices))

    def back(self, counts: tuple[int, ...], room: int) -> Counters:
        """The rows before each fed its last `counts[row]` tokens; bases stay as low as `shift_for` leaves them."""
        seen = tuple(t - n for t, n in zip(self.seen, counts, strict=True))
        return Counters(seen, tuple(min(b, max(0, t - room)) for t, b in zip(seen, self.base, strict=True)))

    def shift_for(self, new_tokens: int, room: int) -> tuple[int, ...]:
        """By how much each base has to move before a call of `new_tokens`; all zero when there is room.

        Model positions t - base are kept below a limit of 2 (room + 1), `room` being what the widest layer caches,
        beyond which a move brings the query back to position `room`. A key is moved about once in its life, so rounding
        errors do not add up.
        """
        ahead = [t - b for t, b in zip(self.seen, self.base, strict=True)]
        if max(ahead) + new_tokens - 1 < 2 * (room + 1):
            return (0,) * len(self)
        return tuple(max(0, position - room) for position in ahead)

    def rebase(self, shift: tuple[int, ...]) -> Counters:
        return replace(self, base=tuple(b + s for b, s in zip(self.base, shift, strict=True)))
