"""What a client sees of an answer that a stop string ends."""

from __future__ import annotations

from collections.abc import Sequence


class VisibleText:
    """The text of an answer up to the first stop string, given in pieces as it is made.

    What may be the beginning of a stop string is held back until more is known.

    Parameters
    ----------
    stops : sequence of str
        What ends the text and is no part of it.

    Attributes
    ----------
    text : str
        What has been given.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.text, self._stops, self._held, self._has_ended = "", tuple(stops), "", False

    def more(self, piece: str) -> str:
        """Take a piece of the answer, and return what can be given."""
        if self._has_ended:
            return ""
        held = self._held + piece
        ends = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        self._has_ended = bool(ends)
        return self._give(held, min(ends) if ends else len(held) - self._doubtful(held))

    def rest(self) -> str:
        """Return what was held back, at the end of the answer."""
        return "" if self._has_ended else self._give(self._held, len(self._held))

    def _give(self, held: str, count: int) -> str:
        given, self._held = held[:count], held[count:]
        self.text += given
        return given

    def _doubtful(self, held: str) -> int:
        """Return how many of the last characters may begin a stop string."""
        lengths = [length for stop in self._stops for length in range(1, len(stop)) if held.endswith(stop[:length])]
        return max(lengths, default=0)
