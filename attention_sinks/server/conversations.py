"""Which conversation of the pool a request goes on in, and which sessions a client has."""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers import GenerationConfig

from ..chat.messages import Message
from ..pool.conversation import Conversation
from ..pool.pool import StreamPool
from ..sessions.store import SessionInUseError
from .errors import RequestError
from .histories import Histories, Place, digest, keys_of

NAMED, FOUND, ON_PAGE = "named", "found", "page"
"""The kinds of sessions: those that a client has named, those that are found by what was said, and the page's."""


@dataclass(frozen=True)
class Asked:
    """What a client asks for.

    Attributes
    ----------
    owner : str
        Whose request it is.
    options : dict
        The settings of the conversation, by the names of `StreamPool.conversation`.
    messages : list of dict
        All messages but the system prompt; after an earlier response, those that follow it.
    config : GenerationConfig
        How the answer is made.
    seed : int or None
        What makes it repeatable.
    session : str or None
        The name of the session that goes on; None to find the conversation by what was said.
    kind : "named" or "page"
        The kind of that session.
    response : str or None
        The id of the response that this is to be, where the next request may name it.
    previous : str or None
        The id of the response that goes on.
    """

    owner: str
    options: dict[str, Any]
    messages: list[Message]
    config: GenerationConfig
    seed: int | None = None
    session: str | None = None
    kind: str = NAMED
    response: str | None = None
    previous: str | None = None


@dataclass(frozen=True)
class Seating:
    """The conversation in which a request is answered.

    Attributes
    ----------
    conversation : Conversation
        The conversation of the pool.
    session : str
        The name of its session.
    messages : list of dict
        What of the request it has not read.
    turns : int or None
        How many turns it must have had; None where any number is right, because the client has named it.
    key : str or None
        What it was found by.
    end : str or None
        The key of the history that ends with the request; None where not all of that is known.
    """

    conversation: Conversation
    session: str
    messages: list[Message]
    turns: int | None
    key: str | None = None
    end: str | None = None


class Conversations:
    """The conversations of all clients.

    Parameters
    ----------
    pool : StreamPool
        Where they are held.
    histories : Histories
        Where those stand that have no name.
    model : str
        What tells the model from others whose sessions are in the same folder.
    most : int
        How many sessions each client has at most. Of those that have no name, the one used least recently is deleted
        for a new one; its history can be read again.
    """

    def __init__(self, pool: StreamPool, histories: Histories, model: str, most: int) -> None:
        self.pool, self.most = pool, most
        self._histories, self._model = histories, model
        self._lock = threading.Lock()
        names = [info.name for info in reversed(pool.sessions())]
        self._keys = OrderedDict((name, list[str]()) for name in names)  # of sessions, used least recently first

    def seat(self, asked: Asked, anew: bool = False) -> Seating:
        """Return where a request is answered; with `anew` in a new conversation, whatever is known.

        Raises
        ------
        RequestError
            When the client has too many sessions, or the response that is to go on is unknown.
        ValueError
            When the settings cannot be had, or the name is too long.
        """
        seating = self._named(asked) if asked.session is not None else self._found(asked, anew)
        self._enter(asked.owner, seating.session)
        return seating

    def _named(self, asked: Asked) -> Seating:
        name = f"{asked.owner}/{asked.kind}/{asked.session}"
        answered = [count for count, message in enumerate(asked.messages, 1) if message["role"] == "assistant"]
        new = asked.messages[answered[-1] if answered else 0 :]
        return Seating(self.pool.conversation(name, **asked.options), name, new, None)

    def _found(self, asked: Asked, anew: bool) -> Seating:
        keys = self._keys_of(asked)
        end = keys[-1][0] if asked.previous is None else None
        for key, count in () if anew else self._candidates(asked, keys):
            if (place := self._histories.find(key)) is not None:
                conversation = self.pool.conversation(place.session, **asked.options)
                return Seating(conversation, place.session, asked.messages[count:], place.turns, key, end)
        if asked.previous is not None:
            raise RequestError(
                404,
                f"The response {asked.previous!r:.200} is unknown, has gone on already, or was not stored; send all of "
                "the conversation as input.",
                "previous_response_not_found",
                "previous_response_id",
            )
        name = f"{asked.owner}/{FOUND}/{uuid.uuid4().hex}"
        return Seating(self.pool.conversation(name, **asked.options), name, asked.messages, 0, end=end)

    def _candidates(self, asked: Asked, keys: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return the keys of histories that the request may go on from, the longest first, and their messages."""
        if asked.previous is not None:
            return keys
        return [(key, count) for key, count in reversed(keys) if asked.messages[count - 1]["role"] == "assistant"]

    def _keys_of(self, asked: Asked) -> list[tuple[str, int]]:
        """Return the key of the earlier response or, for every message, that of the history that ends with it."""
        if asked.previous is not None:
            return [(self._key_of(asked.owner, asked.previous), 0)]
        beginning = digest(asked.owner, self._model, asked.options)
        return [(key, count) for count, key in enumerate(keys_of(beginning, asked.messages), 1)]

    def moved(self, asked: Asked, seating: Seating, answer: Message) -> None:
        """Note where the conversation of a request stands after its answer."""
        if seating.turns is None:
            return
        keys = [] if asked.response is None else [self._key_of(asked.owner, asked.response)]
        if seating.end is not None:
            keys += keys_of(seating.end, [answer])
        place = Place(seating.session, seating.turns + 1)
        for key in keys:
            self._histories.note(key, place)
        with self._lock:
            old = [seating.key, *self._keys.get(seating.session, ())]
            if seating.session in self._keys:
                self._keys[seating.session] = keys
        for key in filter(None, {*old} - {*keys}):
            self._histories.forget(key)

    def _key_of(self, owner: str, response: str) -> str:
        return digest(owner, self._model, "response", response)

    def named(self, owner: str, kind: str = NAMED) -> list[tuple[str, datetime, int]]:
        """Return the sessions of a client that have a name, when each was used, its bytes; those used last first."""
        start = f"{owner}/{kind}/"
        return [
            (info.name.removeprefix(start), info.used, info.nbytes)
            for info in self.pool.sessions()
            if info.name.startswith(start)
        ]

    def delete(self, owner: str, session: str, kind: str = NAMED) -> bool:
        """Delete a session that has a name, and return whether there was one."""
        name = f"{owner}/{kind}/{session}"
        existed = self.pool.delete(name)
        self._leave(name)
        return existed

    def _enter(self, owner: str, name: str) -> None:
        """Note that a session is used, and make room for it."""
        with self._lock:
            is_new = name not in self._keys
            theirs = [each for each in self._keys if each.startswith(f"{owner}/")]
            self._keys.setdefault(name, [])
            self._keys.move_to_end(name)
        if is_new and len(theirs) >= self.most:
            self._make_room(theirs, name)

    def _make_room(self, theirs: list[str], name: str) -> None:
        """Delete the session of a client that was used least recently and is not being answered."""
        for each in theirs:
            if each.split("/")[1] == FOUND:
                try:
                    self.pool.delete(each)
                except SessionInUseError:
                    continue
                return self._leave(each)
        there = {info.name for info in self.pool.sessions()}
        if gone := next((each for each in theirs if each not in there), None):  # it has never had a turn
            return self._leave(gone)
        self._leave(name)
        raise RequestError(429, f"There are {self.most} sessions already; delete one.", "too_many_sessions")

    def _leave(self, name: str) -> None:
        with self._lock:
            keys = self._keys.pop(name, [])
        for key in keys:
            self._histories.forget(key)
