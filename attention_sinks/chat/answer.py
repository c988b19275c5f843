"""What `StreamingChat.send` returns: an answer that is read piece by piece, and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from .formats import THOUGHTS
from .messages import Message

FinishReason = Literal["stop", "length", "interrupted"]
"""Why an answer ended: the model ended it or a stop string did, its limit, or somebody stopped it."""

PiecesT = TypeVar("PiecesT")


class Piece(str):
    """A piece of an answer: text that knows whether it is part of the model's thoughts."""

    __slots__ = ("is_thought",)
    is_thought: bool

    def __new__(cls, text: str, is_thought: bool = False) -> Piece:
        piece = super().__new__(cls, text)
        piece.is_thought = is_thought
        return piece

    def __reduce__(self) -> tuple[type[Piece], tuple[str, bool]]:
        return type(self), (str(self), self.is_thought)


@dataclass(frozen=True)
class Usage:
    """How many tokens an answer took.

    Attributes
    ----------
    tokens_read : int
        Tokens of the message, and of what the chat template writes around it.
    tokens_written : int
        Tokens of the answer, thoughts included, without the one that ended it.
    tokens_cached : int
        Tokens in the cache when the last of them was made.
    tokens_seen : int
        Tokens of the conversation until then, those that are forgotten included.
    """

    tokens_read: int = 0
    tokens_written: int = 0
    tokens_cached: int = 0
    tokens_seen: int = 0


class Answer:
    """What is known of the answer of one conversation. It grows while the answer is made.

    Attributes
    ----------
    text : str
        The answer, without thoughts and calls of tools. `str(answer)` is the same.
    thoughts : str
        What the model thought before it.
    tool_calls : list of dict
        The calls of tools in it, as `apply_chat_template` takes them: `{"type": "function", "function": {"name": …,
        "arguments": {…}}}`. They are known when the answer has ended. A call that cannot be parsed is part of `text`.
    finish_reason : "stop", "length", "interrupted" or None
        Why the answer ended: by the model or a stop string, at its limit, or because somebody stopped it. None before.
    usage : Usage
        Tokens read, written and in the cache.
    """

    def __init__(self) -> None:
        self.text = ""
        self.thoughts = ""
        self.tool_calls: list[dict[str, Any]] = []
        self.finish_reason: FinishReason | None = None
        self.usage = Usage()
        self.begun = False

    @property
    def message(self) -> Message:
        """The answer as a message, as `apply_chat_template` takes it."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.thoughts:
            message[THOUGHTS] = self.thoughts
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message

    def __str__(self) -> str:
        return self.text

    def _description(self) -> str:
        if not self.begun:
            return "not read yet: iterate over it, or use ask()"
        calls = f", tool_calls={self.tool_calls!r:.80}" if self.tool_calls else ""
        thoughts = f", thoughts={self.thoughts!r:.40}" if self.thoughts else ""
        state = f"finish_reason={self.finish_reason!r}" if self.finish_reason else "being made"
        return f"{self.text!r:.80}{thoughts}{calls}, {state}, {self.usage}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._description()})"


class _Stream(Generic[PiecesT]):
    """Something that is read piece by piece, also in an event loop, from one iterator."""

    def __init__(self, turn: Generator[PiecesT, None, None], stop: Callable[[], None]) -> None:
        self._turn, self._stop = turn, stop

    def __iter__(self) -> Iterator[PiecesT]:
        return self

    def __next__(self) -> PiecesT:
        return next(self._turn)

    def close(self) -> None:
        """Stop the answer. What has been said stays in the stream."""
        self._turn.close()

    def __aiter__(self) -> AsyncIterator[PiecesT]:
        return self

    async def __anext__(self) -> PiecesT:
        """Make the next piece in a thread, so that the event loop goes on. Cancelling the task stops the answer."""
        step = asyncio.ensure_future(asyncio.to_thread(next, self._turn, None))
        try:
            piece = await asyncio.shield(step)
        except asyncio.CancelledError:
            self._stop()
            await asyncio.wait([step])  # nothing can leave the step that is being made
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece


class AnswerStream(_Stream[Piece]):
    """The answer to one turn: an iterator over its pieces, which the model makes while they are read.

    `async for` reads it as well. Its attributes are those of `answer`.

    Attributes
    ----------
    answer : Answer
        What is known of the answer so far.
    """

    def __init__(self, turn: Generator[Piece, None, None], stop: Callable[[], None], answer: Answer) -> None:
        super().__init__(turn, stop)
        self.answer = answer

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def thoughts(self) -> str:
        return self.answer.thoughts

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        return self.answer.tool_calls

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.answer.finish_reason

    @property
    def usage(self) -> Usage:
        return self.answer.usage

    @property
    def message(self) -> Message:
        return self.answer.message

    def __str__(self) -> str:
        return self.answer.text

    def __repr__(self) -> str:
        return repr(self.answer).replace("Answer", type(self).__name__, 1)


class AnswerStreams(_Stream[list[Piece]]):
    """The answers of several conversations: an iterator over lists with one piece of each.

    Attributes
    ----------
    answers : list of Answer
        What is known of each answer so far.
    """

    def __init__(
        self, turn: Generator[list[Piece], None, None], stop: Callable[[], None], answers: list[Answer]
    ) -> None:
        super().__init__(turn, stop)
        self.answers = answers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.answers!r})"
