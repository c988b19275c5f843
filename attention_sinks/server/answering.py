"""The course of one answer: its conversation is found, it is read as it is made, and it is noted where it ends."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool

from ..chat.answer import Piece
from ..chat.messages import Message
from ..pool.answers import PoolAnswerStream
from ..sessions.store import SessionInUseError
from .conversations import Asked, Conversations, Seating
from .errors import RequestError
from .visible import VisibleText


class Answering:
    """One answer.

    Parameters
    ----------
    conversations : Conversations
        Where it is made.
    asked : Asked
        What is asked for.
    seconds : float
        How long it may take.
    """

    def __init__(self, conversations: Conversations, asked: Asked, seconds: float) -> None:
        self._conversations, self._asked = conversations, asked
        self._deadline, self._seconds = time.monotonic() + seconds, seconds
        self._visible = VisibleText(asked.config.stop_strings or ())
        self._seating: Seating
        self._stream: PoolAnswerStream
        self._first: Piece | None
        self.calls: list[dict[str, Any]] = []
        """The calls of tools in it, as OpenAI's API has them; known at its end."""

    async def begin(self) -> None:
        """Have the message read, to the first piece of the answer.

        Raises
        ------
        RequestError
            When there is no session to be had, or it takes too long.
        ValueError, PoolFullError, SessionInUseError, OSError
            As `Conversation.send` and what it returns.
        """
        for anew in (False, True):
            self._seating = seating = await run_in_threadpool(self._conversations.seat, self._asked, anew)
            self._stream = seating.conversation.send(
                seating.messages,
                generation_config=self._asked.config,
                seed=self._asked.seed,
                after_turns=seating.turns,
            )
            try:
                self._first = await self._next()
                return
            except (ValueError, SessionInUseError, OSError):  # it has moved, or its file cannot be used
                if not seating.turns or self._asked.previous is not None:
                    raise

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the visible pieces of the answer; when they end, where the conversation stands is noted."""
        piece = self._first
        while piece is not None:
            text = piece if piece.is_thought else self._visible.more(piece)
            if text:
                yield Piece(text, piece.is_thought)
            piece = await self._next()
        if rest := self._visible.rest():
            yield Piece(rest)
        answer = self._stream.answer
        if answer.finish_reason == "interrupted":
            raise RequestError(503, "The server is ending; send the request again.", "stopped")
        self.calls = [_call(call) for call in answer.tool_calls]
        message: Message = {"role": "assistant", "content": self._visible.text, "tool_calls": answer.tool_calls}
        await run_in_threadpool(self._conversations.moved, self._asked, self._seating, message)

    async def _next(self) -> Piece | None:
        """Return the next piece, or None at the end."""
        try:
            return await asyncio.wait_for(anext(self._stream, None), max(0.0, self._deadline - time.monotonic()))
        except asyncio.TimeoutError:
            self._stream.close()
            raise RequestError(
                504, f"The answer took longer than {self._seconds:g} seconds; ask for fewer tokens.", "timeout"
            ) from None

    @property
    def text(self) -> str:
        """What can be seen of the answer so far."""
        return self._visible.text

    @property
    def thoughts(self) -> str:
        """What the model thought before it."""
        return self._stream.answer.thoughts

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, as OpenAI's API says it."""
        return "tool_calls" if self.calls else self._stream.answer.finish_reason

    @property
    def usage(self) -> dict[str, Any]:
        """How many tokens it took. Those of the prompt that were in the cache already count as cached."""
        usage = self._stream.answer.usage
        written = usage.tokens_written
        prompt = max(usage.tokens_read, usage.tokens_cached - written)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": prompt - usage.tokens_read},
        }


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {
        "id": f"call_{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
