"""`Conversation`: what one talks with in a pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from ..chat.answer import Answer
from ..chat.decoding import Choosing, device_of
from ..chat.messages import Message, Turn, is_turn, turns_of
from ..chat.turns import Request
from ..sessions.store import SessionInUseError
from .answers import PoolAnswerStream
from .host import Host, Opened, PoolTurn
from .talk import Talk, Talks

FoundT = TypeVar("FoundT")


class ConversationMovedError(ValueError):
    """A conversation does not stand where whoever goes on in it has last seen it."""


class Conversation:
    """One conversation of a `StreamPool`, which makes it. It takes turns as a `StreamingChat` does.

    Several may be held at once, also by different threads. A conversation takes one turn at a time.

    Attributes
    ----------
    name : str or None
        The name of its session; None for one that ends with this object.
    """

    def __init__(
        self,
        pool: object,
        host: Host,
        talks: Talks,
        open: Callable[[], Opened],
        name: str | None,
        options: Mapping[str, Any],
        generation_config: GenerationConfig,
    ) -> None:
        self.name, self._pool, self._host, self._talks, self._open = name, pool, host, talks, open
        self._options, self._generation_config = dict(options), generation_config
        self._turn: PoolTurn | None = None
        self._lock = threading.Lock()

    def send(
        self,
        message: Turn,
        *,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        logits_processor: Sequence[LogitsProcessor] = (),
        stopping_criteria: Sequence[StoppingCriteria] = (),
        chat_template_kwargs: dict[str, Any] | None = None,
        wait: bool = True,
        after_turns: int | None = None,
    ) -> PoolAnswerStream:
        """Send a message and return the answer, which is being made from now on.

        Parameters
        ----------
        message : str, dict or list
            A user's message, a message as `apply_chat_template` takes it, or a list of messages.
        generation_config : GenerationConfig, optional
            How this answer is chosen, and where it ends. The default is the pool's.
        seed : int, optional
            Makes sampling repeatable, whatever others do meanwhile.
        logits_processor : list of LogitsProcessor, optional
            They see and change the scores of this conversation alone.
        stopping_criteria : list of StoppingCriteria, optional
            They end this answer alone. When one raises, this answer ends with that error.
        chat_template_kwargs : dict, optional
            Keywords for the chat template in this turn.
        wait : bool, default True
            Whether the turn waits where no row is free.
        after_turns : int, optional
            How many turns the conversation must have had. With it, nobody goes on in a conversation that has been
            deleted, or has gone on elsewhere, since it was last seen.

        Returns
        -------
        PoolAnswerStream
            An iterator over the pieces of the answer, also with `async for`. Errors of a turn that has begun come from
            it: ValueError for a message that the chat template has nothing for, a session of another model or a damaged
            file; OSError when the turn could not be saved; `SessionInUseError` when another process has the session;
            `ConversationMovedError` when the conversation has not had `after_turns` turns. Nothing is then read.

        Raises
        ------
        TypeError
            When `message` is none of the forms, or `seed` is no int.
        ValueError
            When it has several conversations or no message.
        PoolFullError
            When no row is free and it is not to wait, or `max_waiting` turns wait.
        SessionInUseError
            When this object's last answer is still being made.
        RuntimeError
            When the pool is closed.
        """
        turns = self._checked(message)
        choosing = Choosing(
            generation_config or self._generation_config,
            list(logits_processor),
            list(stopping_criteria),
            self._generator(seed),
        )
        options = dict(chat_template_kwargs) if isinstance(chat_template_kwargs, dict) else chat_template_kwargs
        request = Request(turns, True, [Answer()], choosing, options)
        check = partial(self._check, after_turns=after_turns)
        turn = PoolTurn(self._open, partial(self._talks.new, self._options), check, request, self._is_free)
        with self._lock:
            if self._turn is not None:
                raise SessionInUseError(
                    f"conversation {self.name!r} is being answered; call stop(), or wait until that answer has ended."
                )
            self._turn = turn
        try:
            self._host.serve(turn, wait)
        except BaseException:
            self._is_free()
            raise
        return PoolAnswerStream(turn.mail, partial(self._host.stop, turn), request.answers[0])

    asend = send
    """The same, for an event loop: `async for piece in conversation.asend("Hello!")`."""

    def ask(self, message: Turn, **options: Any) -> Answer:
        """Send a message and return the finished answer. Parameters and errors are those of `send` and its answer."""
        stream = self.send(message, **options)
        for _ in stream:
            pass
        return stream.answer

    async def aask(self, message: Turn, **options: Any) -> Answer:
        """The same as `ask`, for an event loop."""
        stream = self.send(message, **options)
        async for _ in stream:
            pass
        return stream.answer

    def stop(self) -> None:
        """Stop the answer that is being made, if there is one. It ends with the step that is being made."""
        turn = self._turn
        if turn is not None:
            self._host.stop(turn)

    @property
    def turns_in_window(self) -> list[int]:
        """The numbers, from 1, of the turns of which nothing has been forgotten. It wakes the conversation."""
        return self._look(lambda talk: next(iter(talk.turns.in_window()), []))

    @property
    def transcript(self) -> list[Message] | None:
        """All messages and answers, where the pool keeps them, else None. It wakes the conversation."""
        return self._look(lambda talk: next(iter(talk.turns.transcripts()), []) if talk.chat.keep_transcript else None)

    @property
    def tokens_seen(self) -> int:
        """Tokens that it has read and written, those that are forgotten included. It wakes the conversation."""
        return self._look(lambda talk: next(iter(talk.stream.seen), 0))

    @property
    def nbytes(self) -> int:
        """Bytes of its cache; 0 before its first turn. It wakes the conversation."""
        return self._look(lambda talk: talk.nbytes)

    def __repr__(self) -> str:
        state = "being answered" if self._turn is not None else "idle"
        return f"{type(self).__name__}(name={self.name!r}, {state})"

    def _look(self, at: Callable[[Talk], FoundT]) -> FoundT:
        """Return what `at` says of the conversation, between two turns.

        Raises
        ------
        SessionInUseError
            While an answer is being made.
        """
        opened = self._open()
        try:
            return at(opened.value or self._talks.new(self._options))
        finally:
            opened.close()

    def _checked(self, message: Any) -> list[list[Message]]:
        if isinstance(message, (list, tuple)) and message and not is_turn(message):
            raise ValueError("message has turns of several conversations; use a conversation for each.")
        return turns_of(message)

    def _check(self, talk: Talk, after_turns: int | None) -> None:
        """Refuse to go on in a conversation that stands elsewhere, or was begun with other settings than asked for."""
        if after_turns is not None and talk.count != after_turns:
            raise ConversationMovedError(
                f"conversation {self.name!r} has had {talk.count} turns, not after_turns={after_turns}; send all that "
                "was said to a new conversation, or leave after_turns out."
            )
        if others := self._talks.differing(talk, self._options):
            raise ValueError(
                f"conversation {self.name!r} was begun with another {others[0]}; leave {others[0]} out, or delete the "
                "session first."
            )

    def _generator(self, seed: int | None) -> torch.Generator | None:
        if seed is None:
            return None
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} is no whole number; pass an int, or leave it out.")
        return torch.Generator(device=device_of(self._talks.model)).manual_seed(seed)

    def _is_free(self) -> None:
        self._turn = None
