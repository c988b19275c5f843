"""What the file of a chat says besides its tensors: written, checked, and brought back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn
from transformers import GenerationConfig

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.schema import Count, Record, checked
from .formats import check_call
from .messages import Thoughts
from .rows import Row, TurnLog
from .stream import ChatStream
from .template import ChatTemplate

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]

Messages = list[dict[str, Any]]


def _names_a_function(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool, or a call of one; ValueError unless it names a function, and parameters are a JSON schema."""
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("it names no function")
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
        raise ValueError("its parameters are no JSON schema")
    return tool


Tool = Annotated[dict[str, Any], AfterValidator(_names_a_function)]

Call = Annotated[Tool, AfterValidator(check_call)]


class LogState(Record):
    """Which turns the window of a conversation holds."""

    starts: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    base: Count
    tokens: Tokens


class RowState(Record):
    """Where a conversation stands besides the tokens that were said but not fed."""

    tail: Tokens
    count: Count
    ended: bool
    tool_calls: list[Call]
    turn: Count
    first: bool
    transcript: Messages | None
    log: LogState


class ChatState(Record):
    """What `StreamingChat.save` says of a chat besides its tensors. What has a default was added later."""

    kind: Literal["StreamingChat"]
    cache: dict[str, Any]
    unfed: Annotated[list[Tokens], Field(fail_fast=True)] | None
    system: str | None
    chat_template: str | None
    turn: Tokens
    generation_config: dict[str, Any]
    rows: list[RowState] | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    chat_template_kwargs: dict[str, Any] = {}
    thoughts: Thoughts = "keep"
    keep_transcript: bool = False

    def arguments(self, generation_config: GenerationConfig | None) -> dict[str, Any]:
        """Return the arguments with which the chat was made."""
        return {
            "system": self.system,
            "generation_config": generation_config or generation_config_of(self.generation_config),
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "tools": self.tools,
            "thoughts": self.thoughts,
            "keep_transcript": self.keep_transcript,
        }

    def conversations(
        self, cache: AttentionSinkKVCache, vocabulary: int
    ) -> tuple[tuple[Row, ...] | None, list[TurnLog]]:
        """Return where the conversations stand in their streams, those of `cache`.

        Raises
        ------
        ValueError
            When they are not those of the cache, or have a token outside the model's vocabulary.
        """
        check_unfed(self.unfed, cache.batch_size, vocabulary)
        if self.unfed is None:
            return None, []
        for state in self.rows or ():
            check_vocabulary([state.tail, state.log.tokens], vocabulary)
        states, seen = self.rows, list(cache.streams.seen) or [0] * len(self.unfed)
        if states is None:  # a file of a release that did not note them
            return tuple(Row(tuple(unfed)) for unfed in self.unfed), [TurnLog(base=count) for count in seen]
        if len(states) != len(self.unfed) or any(
            state.log.base + len(state.log.tokens) != count for state, count in zip(states, seen, strict=True)
        ):
            raise ValueError("holds conversations that are not those of its cache; use an intact copy.")
        return (
            tuple(_row(state, unfed) for state, unfed in zip(states, self.unfed, strict=True)),
            [TurnLog(_pairs(state.log.starts), state.log.base, list(state.log.tokens)) for state in states],
        )


def settings_of(chat: Any) -> dict[str, Any]:
    """Return the arguments of the `StreamingChat` `chat` that a conversation keeps, as a file says them."""
    template = chat.template
    return {
        "system": template.system,
        "chat_template": template.chat_template,
        "tools": template.tools,
        "chat_template_kwargs": template.options,
        "thoughts": chat.thoughts,
        "keep_transcript": chat.keep_transcript,
    }


def saved_state(chat: Any, cache: dict[str, Any], stream: ChatStream) -> dict[str, Any]:
    """Return what a file says of the `StreamingChat` `chat`, with the state of the cache of its `stream`."""
    rows = stream.rows
    state: dict[str, Any] = {
        "kind": "StreamingChat",
        "cache": cache,
        "unfed": None if rows is None else [list(row.unfed) for row in rows],
        "turn": chat.template.next_turn("").ids,
        "generation_config": json.loads(chat.generation_config.to_json_string()),
        **settings_of(chat),
    }
    if rows is not None:
        logs = zip(rows, stream.logs, stream.seen, strict=True)
        state["rows"] = [_state(row, log.at(row.turn, seen)) for row, log, seen in logs]
    return state


@dataclass(frozen=True)
class Restored:
    """What a file holds of a chat.

    Attributes
    ----------
    saved : ChatState
        What it says.
    cache : AttentionSinkKVCache
        The streams of the conversations.
    rows : tuple of Row or None
        Where they stand; None before the first turn.
    logs : list of TurnLog
        Which turns their windows hold.
    """

    saved: ChatState
    cache: AttentionSinkKVCache
    rows: tuple[Row, ...] | None
    logs: list[TurnLog]

    def put_into(self, stream: ChatStream) -> None:
        """Let `stream`, which has not begun, go on where the conversations of the file stand."""
        stream.cache = self.cache
        if self.rows is not None:
            stream.rows, stream.logs = self.rows, self.logs

    def check_template(self, template: ChatTemplate) -> None:
        """Raise ValueError when `template` is not the one that the chat was saved with."""
        if template.next_turn("").ids != self.saved.turn:
            raise ValueError("holds a chat with another tokenizer or chat template; use those it was saved with.")


def restored(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    state: dict[str, Any],
    generation_config: GenerationConfig | None,
    known: dict[str, Any] | None = None,
    cache_class: type[AttentionSinkKVCache] = AttentionSinkKVCache,
) -> Restored:
    """Return what a file holds of a chat, checked, with a cache of `cache_class` for `model`.

    `known` is the fingerprint of the model, where that is at hand.

    Raises
    ------
    ValueError
        When it is not the file of a chat of this model.
    """
    vocabulary = setup_of(model).model.config.vocab_size
    saved = fitting_chat(state, generation_config)
    cache = cache_class.from_snapshot(model, tensors, saved.cache, known)
    return Restored(saved, cache, *saved.conversations(cache, vocabulary))


def fitting_chat(state: dict[str, Any], generation_config: GenerationConfig | None) -> ChatState:
    """Return what a file says of a chat, checked.

    Raises
    ------
    ValueError
        When it is not the file of a chat, or has a generation config that Transformers refuses and none is given.
    """
    saved = checked(ChatState, state)
    if generation_config is None:
        generation_config_of(saved.generation_config)
    return saved


def _pairs(pairs: list[list[int]]) -> dict[int, int]:
    return {first: second for first, second in pairs}  # noqa: C416  a list of two is no tuple for mypy


def _state(row: Row, log: TurnLog) -> dict[str, Any]:
    return {
        "tail": list(row.tail),
        "count": row.count,
        "ended": row.ended,
        "tool_calls": list(row.tool_calls),
        "turn": row.turn,
        "first": row.first,
        "transcript": None if row.transcript is None else list(row.transcript),
        "log": {"starts": [list(each) for each in log.starts.items()], "base": log.base, "tokens": log.tokens},
    }


def _row(state: RowState, unfed: list[int]) -> Row:
    return Row(
        unfed=tuple(unfed),
        tail=tuple(state.tail),
        count=state.count,
        ended=state.ended,
        tool_calls=tuple(state.tool_calls),
        turn=state.turn,
        first=state.first,
        transcript=None if state.transcript is None else tuple(state.transcript),
    )


def generation_config_of(values: dict[str, Any]) -> GenerationConfig:
    """Return the config that has these values.

    Raises
    ------
    ValueError
        When there is none.
    """
    if taken := [name for name in values if hasattr(GenerationConfig, name)]:
        raise ValueError(f"holds a generation config with a {taken[0]!r:.80}, which is no setting; use an intact copy.")
    try:
        return GenerationConfig.from_dict(values)
    except Exception as error:  # Transformers says nothing about what it may be
        raise ValueError(
            f"holds a generation config that Transformers refuses ({error!r:.200}); pass generation_config."
        ) from error


def check_unfed(unfed: list[list[int]] | None, batch_size: int, vocabulary: int) -> None:
    """Raise ValueError unless `unfed` has tokens of the vocabulary for each row of a cache, which may have none."""
    if unfed is None:
        return
    if len(unfed) != batch_size and batch_size > 0:
        raise ValueError(f"holds {len(unfed)} conversations, but a cache of {batch_size} rows; use an intact copy.")
    check_vocabulary(unfed, vocabulary)


def check_vocabulary(rows: list[list[int]], vocabulary: int) -> None:
    """Raise ValueError when a token is not one of the vocabulary."""
    if any(token >= vocabulary for row in rows for token in row):
        raise ValueError(f"holds a token that is not among the model's {vocabulary}; use an intact copy.")
