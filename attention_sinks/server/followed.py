"""Answers that are made to their end whoever looks on: a reader of the page may leave, and come back meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi.concurrency import run_in_threadpool
from transformers import GenerationConfig

from ..chat.answer import Answer
from ..chat.messages import Message
from ..pool.answers import PoolAnswerStream
from ..pool.conversation import Conversation
from .conversations import ON_PAGE, Asked, Conversations
from .errors import RequestError

LOOKS = 0.05
"""Seconds between two looks at an answer."""


@dataclass(frozen=True)
class Stand:
    """A conversation between two turns.

    Attributes
    ----------
    messages : list of dict
        All that was said.
    tokens_seen : int
        Its tokens.
    nbytes : int
        Bytes of its cache.
    whole_turns : list of int
        The turns of which nothing has been forgotten.
    """

    messages: list[Message]
    tokens_seen: int = 0
    nbytes: int = 0
    whole_turns: tuple[int, ...] = ()

    @classmethod
    def of(cls, conversation: Conversation) -> Stand:
        """Return where a conversation stands.

        Raises
        ------
        SessionInUseError, ValueError, OSError
            While it is being answered, or when its file cannot be used.
        """
        messages, whole = conversation.transcript or [], tuple(conversation.turns_in_window)
        return cls(messages, conversation.tokens_seen, conversation.nbytes, whole)


class Followed:
    """One answer that is being made, or was.

    Parameters
    ----------
    before : Stand
        Where the conversation stood before.
    question : dict
        What is answered.
    conversation : Conversation
        Where it is answered.
    stream : PoolAnswerStream
        The answer.
    seconds : float
        How long it may take.

    Attributes
    ----------
    error : Exception or None
        What has ended it, if it has not ended by itself or been stopped.
    """

    def __init__(
        self, before: Stand, question: Message, conversation: Conversation, stream: PoolAnswerStream, seconds: float
    ) -> None:
        self.before, self.question, self._seconds = before, question, seconds
        self._conversation, self._stream = conversation, stream
        self.error: Exception | None = None
        self._first: float | None = None
        self._last = 0.0

    @property
    def answer(self) -> Answer:
        """What is known of the answer."""
        return self._stream.answer

    @property
    def now(self) -> Stand:
        """Where the conversation stands, as far as can be told amid an answer."""
        before, answer = self.before, self.answer
        seen = max(before.tokens_seen, answer.usage.tokens_seen)
        return Stand([*before.messages, self.question, answer.message], seen, before.nbytes, before.whole_turns)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer by second, from its first one on; 0 before the second one."""
        seconds = 0.0 if self._first is None else self._last - self._first
        return max(0, self.answer.usage.tokens_written - 1) / seconds if seconds > 0 else 0.0

    def stop(self) -> None:
        """End the answer with the step that is being made. What was said stays."""
        self._conversation.stop()

    async def read(self) -> None:
        """Read the answer to its end, from which on the conversation is free, and keep the error that may end it."""
        late = asyncio.get_running_loop().call_later(self._seconds, self._stop_late)
        try:
            async for _ in self._stream:
                self._last = time.monotonic()
                self._first = self._first or self._last
        except Exception as error:
            self.error = error
        finally:
            late.cancel()

    def _stop_late(self) -> None:
        self.error = RequestError(504, f"The answer took longer than {self._seconds:g} seconds and was stopped.")
        self.stop()


class FollowedAnswers:
    """The answers that are being made for the page, at most one in each session.

    Parameters
    ----------
    conversations : Conversations
        Where they are made.
    config : GenerationConfig
        How.
    seconds : float
        How long one may take.
    """

    def __init__(self, conversations: Conversations, config: GenerationConfig, seconds: float) -> None:
        self._conversations, self._config, self._seconds = conversations, config, seconds
        self._made: dict[tuple[str, str], tuple[Followed, asyncio.Task[None]]] = {}

    async def begin(self, owner: str, session: str, text: str) -> Followed:
        """Send a message in a session, and return the answer.

        Raises
        ------
        RequestError, ValueError, OSError, PoolFullError, SessionInUseError
            As `Conversations.seat` and `Conversation.send`.
        """
        message: Message = {"role": "user", "content": text}
        asked = Asked(owner, {"keep_transcript": True}, [message], self._config, session=session, kind=ON_PAGE)
        seating = await run_in_threadpool(self._conversations.seat, asked)
        before = await run_in_threadpool(Stand.of, seating.conversation)
        stream = seating.conversation.send(message, generation_config=self._config)
        followed, key = Followed(before, message, seating.conversation, stream, self._seconds), (owner, session)
        task = asyncio.create_task(followed.read())
        self._made[key] = followed, task
        task.add_done_callback(lambda _: self._made.pop(key, None))
        return followed

    def find(self, owner: str, session: str) -> Followed | None:
        """Return the answer that is being made in a session, if there is one."""
        return made[0] if (made := self._made.get((owner, session))) is not None else None

    async def stand(self, owner: str, session: str) -> Stand:
        """Return where a session stands.

        Raises
        ------
        SessionInUseError, ValueError, OSError
            While it is being answered, or when its file cannot be used.
        """
        name = f"{owner}/{ON_PAGE}/{session}"
        return await run_in_threadpool(
            lambda: Stand.of(self._conversations.pool.conversation(name, keep_transcript=True))
        )

    async def looks(self, owner: str, session: str) -> AsyncIterator[Followed]:
        """Yield the answer of a session whenever there may be more of it, until it has ended."""
        while (followed := self.find(owner, session)) is not None:
            yield followed
            await asyncio.sleep(LOOKS)
