"""What a turn may consist of: text, a message, or several messages, for one conversation or for several."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

Message: TypeAlias = dict[str, Any]
"""A message as `apply_chat_template` takes it: `role`, `content` and what else the template reads."""

Turn: TypeAlias = str | Message | list[Message]
"""What one conversation is sent: the text of a user's message, a message, or a list of messages."""

Turns: TypeAlias = list[str] | tuple[str, ...] | list[list[Message]] | tuple[list[Message], ...]
"""A turn for each of several conversations: texts, or lists of messages."""

Thoughts: TypeAlias = Literal["keep", "forget"]
"""What becomes of the thoughts of an answer: they stay in the stream as they were said, or they leave it at its end."""


def is_turn(given: Any) -> bool:
    """Return whether `given` is the turn of one conversation, and no list with a turn for each of several."""
    if isinstance(given, (list, tuple)):
        return bool(given) and all(isinstance(each, Mapping) for each in given)
    return isinstance(given, (str, Mapping))


def turns_of(given: Any) -> list[list[Message]]:
    """Return the messages of each conversation.

    Raises
    ------
    TypeError
        When `given`, or a message in it, is none of the forms.
    ValueError
        When there is no message, a message says nothing that text can, or the last one is an answer.
    """
    turns = [given] if is_turn(given) else given
    if not isinstance(turns, (list, tuple)):
        raise TypeError(
            f"message={given!r:.80} must be a str, a message (a dict with role and content) or a list of messages, or "
            "a list of those for several conversations."
        )
    if not turns:
        raise ValueError("message=[] has no message; pass one for each conversation.")
    return [_messages_of(turn) for turn in turns]


def _messages_of(turn: Any) -> list[Message]:
    if isinstance(turn, str):
        return [{"role": "user", "content": turn}]
    messages = [turn] if isinstance(turn, Mapping) else turn
    if not isinstance(messages, (list, tuple)) or not all(isinstance(each, Mapping) for each in messages):
        raise TypeError(
            f"message={turn!r:.80} must be a str, a message (a dict with role and content) or a list of messages."
        )
    if not messages:
        raise ValueError("message has a conversation without a message, []; pass one for each conversation.")
    for message in messages:
        _check(message)
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            "message ends with role='assistant', which leaves nothing to answer; end with another role, such as user."
        )
    return [copy.deepcopy(dict(message)) for message in messages]


def _check(message: Mapping[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise TypeError(f"message={dict(message)!r:.80} has role={role!r:.40}; name a role such as 'user' or 'tool'.")
    may_be_none = role == "assistant" and message.get("tool_calls")
    if not isinstance(content, (str, list)) and not (content is None and may_be_none):
        raise TypeError(
            f"message={dict(message)!r:.80} has content={content!r:.40}, which is no text; pass a str, or JSON text."
        )
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise ValueError(
                f"message has a part {part!r:.80} that is no text, and a chat streams text alone; pass parts such as "
                "{'type': 'text', 'text': '…'}."
            )
