"""Where one conversation of a chat stands besides its stream, and which turns its window still holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .messages import Message

TAIL = 32
"""So many of the last tokens of an answer are kept, to see what it has ended with."""


@dataclass(frozen=True)
class Row:
    """Where one conversation stands. It is immutable: what changes it makes another.

    Attributes
    ----------
    unfed : tuple of int
        Tokens that were said but are not in the cache.
    tail : tuple of int
        The last tokens of the answer.
    count : int
        How many tokens the answer has.
    ended : bool
        Whether the model ended the answer. It may also have been cut.
    tool_calls : tuple of dict
        The calls of tools in it.
    is_open : bool
        Whether the answer is being made, or has been left and not been ended yet.
    turn : int
        How many turns there were.
    exchange : tuple of dict
        The messages and answers since thoughts were last forgotten; empty where they are kept.
    first : bool
        Whether the exchange begins the conversation.
    transcript : tuple of dict or None
        All that was said, where the chat keeps it.
    """

    unfed: tuple[int, ...] = ()
    tail: tuple[int, ...] = ()
    count: int = 0
    ended: bool = True
    tool_calls: tuple[dict[str, Any], ...] = ()
    is_open: bool = False
    turn: int = 0
    exchange: tuple[Message, ...] = ()
    first: bool = True
    transcript: tuple[Message, ...] | None = None

    def asked(self, messages: list[Message], forgets: bool) -> Row:
        """Return where it stands once a turn's messages are read."""
        return replace(
            self,
            unfed=(),
            tail=(),
            count=0,
            ended=False,
            tool_calls=(),
            is_open=True,
            turn=self.turn + 1,
            exchange=(*self.exchange, *messages) if forgets else (),
            first=self.turn == 0 or (self.first and bool(self.exchange)),
            transcript=None if self.transcript is None else (*self.transcript, *messages),
        )

    def fed(self) -> Row:
        """Return where it stands once what was said is in the cache."""
        return replace(self, unfed=()) if self.unfed else self

    def said(self, token: int | None, ended: bool) -> Row:
        """Return where it stands after a step of the answer; the token is None if it only ends the answer."""
        if token is None:
            return replace(self, ended=ended or self.ended)
        return replace(self, unfed=(*self.unfed, token), tail=(*self.tail[1 - TAIL :], token), count=self.count + 1)

    def answered(self, message: Message, forgets: bool) -> Row:
        """Return where it stands when the answer is complete, or was left."""
        bare = {name: value for name, value in message.items() if name in ("role", "content", "tool_calls")}
        return replace(
            self,
            tool_calls=tuple(message.get("tool_calls", ())),
            is_open=False,
            exchange=(*self.exchange, bare) if forgets else (),
            transcript=None if self.transcript is None else (*self.transcript, message),
        )

    def forgot(self) -> Row:
        """Return where it stands once the thoughts of its exchange are forgotten."""
        return replace(self, unfed=(), tail=(), exchange=(), first=False)


@dataclass
class TurnLog:
    """The tokens of one stream that its window still holds, by turn.

    It is written before the stream is fed and may be ahead of it. What is written at a position takes the place of what
    was there, so a stream that has been taken back needs no more than to go on.

    Attributes
    ----------
    starts : dict
        Turn -> stream position of its first token, for the turns of which the window holds a token.
    base : int
        The stream position of the first of `tokens`.
    tokens : list of int
        The last tokens of the stream.
    """

    starts: dict[int, int] = field(default_factory=dict)
    base: int = 0
    tokens: list[int] = field(default_factory=list)

    def begin(self, turn: int, position: int) -> None:
        """Note that `turn` begins at `position`, and forget later turns, which were taken back."""
        self.starts = {number: start for number, start in self.starts.items() if number < turn} | {turn: position}

    def write(self, position: int, tokens: list[int] | tuple[int, ...]) -> None:
        """Write the tokens that are to be fed at `position`."""
        if not self.base <= position <= self.base + len(self.tokens):  # somebody else has fed the stream meanwhile
            self.base, self.tokens = position, []
        del self.tokens[position - self.base :]
        self.tokens += tokens

    def at(self, turn: int, seen: int) -> TurnLog:
        """Return the log of a stream that stands in `turn` and has `seen` tokens."""
        starts = {number: start for number, start in self.starts.items() if number <= turn}
        if not self.base <= seen <= self.base + len(self.tokens):
            return TurnLog(starts, seen)
        return TurnLog(starts, self.base, self.tokens[: seen - self.base])

    def whole(self, turn: int, seen: int, sinks: int, window: int) -> list[int]:
        """Return the turns up to `turn` of which a stream of `seen` tokens has forgotten nothing."""
        numbers = [number for number in sorted(self.starts) if number <= turn]
        ends = [self.starts[number] for number in numbers[1:]] + [seen]
        oldest = max(seen - window, 0)
        return [
            number
            for number, end in zip(numbers, ends, strict=True)
            if end <= sinks or max(self.starts[number], sinks) >= oldest
        ]

    def evict(self, seen: int, sinks: int, window: int) -> list[tuple[int, list[int]]]:
        """Let go of the tokens that a stream of `seen` tokens no longer has; return them by turn."""
        gone, left = max(seen - window - self.base, 0), []
        numbers = sorted(self.starts)
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            start = max(self.starts[number], self.base, sinks)
            end = min(self.base + gone, seen if following is None else self.starts[following])
            if start < end:
                left.append((number, self.tokens[start - self.base : end - self.base]))
            is_gone = following is not None and self.starts[following] <= self.base + gone
            if is_gone and self.starts[number] > sinks:  # the turn before may end within the sinks
                del self.starts[number]
        del self.tokens[:gone]
        self.base += gone
        return left
