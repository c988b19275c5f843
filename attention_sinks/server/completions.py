"""Answers in the form of `/v1/chat/completions`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from .answering import Answering
from .errors import failure_of


class Completion:
    """One answer as a client of OpenAI's API reads it.

    Parameters
    ----------
    answering : Answering
        The answer, which has begun.
    model : str
        The name of the model.
    """

    def __init__(self, answering: Answering, model: str) -> None:
        self._answering, self._model = answering, model
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self) -> dict[str, Any]:
        """Return the answer when it has ended."""
        async for _ in self._answering.pieces():
            pass
        answering = self._answering
        message: dict[str, Any] = {"role": "assistant", "content": answering.text, "refusal": None}
        if answering.thoughts:
            message["reasoning_content"] = answering.thoughts
        if answering.calls:
            message |= {"content": answering.text or None, "tool_calls": answering.calls}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answering.finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": answering.usage}

    async def events(self, tells_usage: bool) -> AsyncIterator[str]:
        """Yield the answer as server-sent events while it is made.

        Parameters
        ----------
        tells_usage : bool
            Whether the last one tells how many tokens it took.
        """
        answering = self._answering
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            async for piece in answering.pieces():
                yield self._chunk({"reasoning_content" if piece.is_thought else "content": str(piece)})
            if answering.calls:
                calls = [{"index": index, **call} for index, call in enumerate(answering.calls)]
                yield self._chunk({"tool_calls": calls})
            yield self._chunk({}, answering.finish_reason)
            if tells_usage:
                yield _event(self._object("chat.completion.chunk", []) | {"usage": answering.usage})
        except Exception as error:  # the status has been sent
            yield _event(failure_of(error).body)
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
