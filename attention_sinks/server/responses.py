"""Answers in the form of `/v1/responses`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from .answering import Answering
from .errors import failure_of

Item = dict[str, Any]


class Responding:
    """One answer as a client of OpenAI's API of responses reads it.

    Parameters
    ----------
    answering : Answering
        The answer, which has begun.
    name : str
        The id of the response.
    model : str
        The name of the model.
    previous : str or None
        The id of the response that goes on.
    """

    def __init__(self, answering: Answering, name: str, model: str, previous: str | None) -> None:
        self._answering, self._name, self._model, self._previous = answering, name, model, previous
        self._created, self._events = int(time.time()), 0
        self._ids = {kind: f"{short}_{uuid.uuid4().hex}" for kind, short in (("reasoning", "rs"), ("message", "msg"))}

    async def whole(self) -> dict[str, Any]:
        """Return the answer when it has ended."""
        async for _ in self._answering.pieces():
            pass
        return self._ended()

    async def events(self) -> AsyncIterator[str]:
        """Yield the answer as server-sent events while it is made."""
        try:
            for kind in ("created", "in_progress"):
                yield self._event(f"response.{kind}", response=self._response("in_progress", []))
            async for event in self._of_text():
                yield event
            items = self._items()
            for index, item in enumerate(items):
                if item["type"] == "function_call":
                    for event in self._of_call(index, item):
                        yield event
            ended = self._ended()
            yield self._event(f"response.{ended['status']}", response=ended)
        except Exception as error:  # the status has been sent
            told = failure_of(error).body["error"]
            yield self._event("error", code=told["code"], message=told["message"], param=told["param"])

    async def _of_text(self) -> AsyncIterator[str]:
        """Yield the events of thoughts and text."""
        open_kind, index = None, -1
        async for piece in self._answering.pieces():
            kind = "reasoning" if piece.is_thought else "message"
            if kind != open_kind:
                closing: list[str] = [] if open_kind is None else self._closing(open_kind, index)
                open_kind, index = kind, index + 1
                for event in closing + self._opening(kind, index):
                    yield event
            delta = "response.reasoning_text.delta" if piece.is_thought else "response.output_text.delta"
            extra: dict[str, Any] = {} if piece.is_thought else {"logprobs": []}
            yield self._event(delta, **self._at(kind, index), delta=str(piece), **extra)
        if open_kind is not None:
            for event in self._closing(open_kind, index):
                yield event

    def _at(self, kind: str, index: int) -> dict[str, Any]:
        return {"item_id": self._ids[kind], "output_index": index, "content_index": 0}

    def _opening(self, kind: str, index: int) -> list[str]:
        item = self._item(kind, "", "in_progress") | {"content": []}
        part = self._item(kind, "", "in_progress")["content"][0]
        return [
            self._event("response.output_item.added", output_index=index, item=item),
            self._event("response.content_part.added", **self._at(kind, index), part=part),
        ]

    def _closing(self, kind: str, index: int) -> list[str]:
        text = self._answering.thoughts if kind == "reasoning" else self._answering.text
        item = self._item(kind, text, "completed")
        done = "response.reasoning_text.done" if kind == "reasoning" else "response.output_text.done"
        extra: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        return [
            self._event(done, **self._at(kind, index), text=text, **extra),
            self._event("response.content_part.done", **self._at(kind, index), part=item["content"][0]),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _of_call(self, index: int, item: Item) -> list[str]:
        at = {"item_id": item["id"], "output_index": index}
        opened = item | {"arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=index, item=opened),
            self._event("response.function_call_arguments.delta", **at, delta=item["arguments"]),
            self._event("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"]),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _item(self, kind: str, text: str, status: str) -> Item:
        item: Item = {"id": self._ids[kind], "type": kind, "status": status}
        if kind == "reasoning":
            return item | {"summary": [], "content": [{"type": "reasoning_text", "text": text}]}
        return item | {
            "role": "assistant",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        }

    def _items(self) -> list[Item]:
        """Return what the answer consists of."""
        answering = self._answering
        items = [self._item("reasoning", answering.thoughts, "completed")] if answering.thoughts else []
        if answering.text or not answering.calls:
            items.append(self._item("message", answering.text, "completed"))
        return items + [
            {
                "id": f"fc_{call['id'].removeprefix('call_')}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                **call["function"],
            }
            for call in answering.calls
        ]

    def _ended(self) -> dict[str, Any]:
        """Return the response at its end."""
        is_cut = self._answering.finish_reason == "length"
        response = self._response("incomplete" if is_cut else "completed", self._items())
        usage = self._answering.usage
        return response | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _response(self, status: str, items: list[Item]) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "response",
            "created_at": self._created,
            "model": self._model,
            "status": status,
            "output": items,
            "previous_response_id": self._previous,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "temperature": None,
            "top_p": None,
        }

    def _event(self, kind: str, **content: Any) -> str:
        told = {"type": kind, "sequence_number": self._events, **content}
        self._events += 1
        return f"event: {kind}\ndata: {json.dumps(told, ensure_ascii=False)}\n\n"
