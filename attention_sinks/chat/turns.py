"""The turns of a chat: messages are read, answers made, and what was left is settled before the next turn."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import starmap, zip_longest
from typing import Any, cast

import torch
from transformers.utils import logging

from ..cache.cache import AttentionSinkKVCache
from .answer import Answer, Piece
from .decoding import Choosing, Decoder, decoder_of
from .interrupts import interrupts_held_back
from .messages import Message
from .parsing import AnswerParser
from .rows import Row
from .stream import ChatStream, Progress, Reading, Stopped, piece_size
from .template import TOOL_ROLES, ChatTemplate, Prompt, Said

logger = logging.get_logger(__name__)

OnEvict = Callable[..., Any]
"""It is told the number of a turn and those of its tokens that have left the window."""


@dataclass(frozen=True)
class Request:
    """What a chat is asked with one turn.

    Attributes
    ----------
    messages : list of list of dict
        The messages of each conversation.
    alone : bool
        Whether it is one conversation, of which the pieces come one by one.
    answers : list of Answer
        What will be known of the answers.
    choosing : Choosing
        How they are chosen.
    options : dict or None
        Keywords for the chat template.
    on_progress : callable or None
        Told how far the messages are read.
    on_evict : callable or None
        Told what has left the window.
    stopping : threading.Event
        Set when the turn shall stop.
    piece_size : callable
        Says how many columns of a message are read next, at most.
    """

    messages: list[list[Message]]
    alone: bool
    answers: list[Answer]
    choosing: Choosing
    options: dict[str, Any] | None = None
    on_progress: Progress | None = None
    on_evict: OnEvict | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    piece_size: Callable[[], int] = piece_size


@dataclass(frozen=True)
class Answering:
    """A turn that has begun.

    Attributes
    ----------
    reading : Reading
        How its messages are read.
    decoder : Decoder
        Says what is fed, and chooses the tokens of the answers.
    """

    reading: Reading
    decoder: Decoder


class TurnTaker:
    """Take the turns of a chat, one after the other.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer.
    template : ChatTemplate
        What turns add.
    stream : ChatStream
        The streams of the conversations.
    forgets : bool
        Whether thoughts leave the stream after the answer.
    keeps_transcript : bool
        Whether all that is said is kept as text.
    """

    def __init__(
        self, tokenizer: Any, template: ChatTemplate, stream: ChatStream, forgets: bool, keeps_transcript: bool
    ) -> None:
        self.tokenizer, self.template, self.stream = tokenizer, template, stream
        self.forgets, self.keeps_transcript = forgets, keeps_transcript
        self.voices: list[AnswerParser] = []  # of the answers that are being made, or were made last

    def reset(self) -> None:
        """Forget the conversations."""
        self.voices = []
        self.stream.reset()

    def take(self, request: Request) -> Generator[Any, None, bool]:
        """Yield lists with a piece of each answer or, for a conversation alone, its pieces.

        Returns
        -------
        bool
            Whether the messages were read, so that there was a turn.
        """
        exhaust(self.settling(request.messages), self.stream)
        answering, is_read = self.begin(request, self.prompts(request)), False
        pieces: list[list[Piece]] | None = []
        try:
            while not request.stopping.is_set() and (pieces := self.next(answering)) is not None:
                if not is_read:
                    self.report_evicted(request.on_evict)
                is_read = True
                yield from handed_out(pieces, request.alone)
        finally:
            pieces = self.leave()
        yield from handed_out(pieces, request.alone)
        exhaust(self.ending(), self.stream)
        return is_read

    def begin(self, request: Request, prompts: list[Prompt]) -> Answering:
        """Begin a turn that adds `prompts`, of which nothing is read yet."""
        reading = self.reading(request, prompts)
        self.voices = [
            AnswerParser(self.tokenizer, self.template.format, answer, prompt, self.template.tools)
            for answer, prompt in zip(request.answers, prompts, strict=True)
        ]
        return Answering(reading, decoder_of(self.stream.model, self.tokenizer, reading.prompts, request.choosing))

    def next(self, answering: Answering) -> list[list[Piece]] | None:
        """Read the messages, or make one step; return the new pieces of each answer. None: there are no more.

        Ctrl-C waits until that is done, or until a piece of the message is read.
        """
        stream, decoder = self.stream, answering.decoder
        if decoder.is_done:
            return None
        with interrupts_held_back() as stream.pressed:
            try:
                return self.hear(decoder, self._feed(answering))
            except Stopped:
                return None
            finally:
                stream.settle()

    def _feed(self, answering: Answering) -> torch.Tensor:
        """Read the messages or, when they are read, feed what was said last; return the logits."""
        stream, decoder = self.stream, answering.decoder
        return stream.step(decoder) if decoder.begun else deque(stream.read(answering.reading, decoder), maxlen=1)[0]

    def hear(self, decoder: Decoder, logits: torch.Tensor) -> list[list[Piece]]:
        """Choose the next tokens of the answers, note them as unfed, and return the new pieces of each answer."""
        step, stream = decoder.choose(logits), self.stream
        rows = stream.rows
        assert rows is not None  # the messages are read
        heard = list(starmap(self._hear, zip(rows, self.voices, *step, self._cached(), stream.seen, strict=True)))
        stream.rows = tuple(row for row, _ in heard)
        return [pieces for _, pieces in heard]

    def _hear(
        self, row: Row, voice: AnswerParser, token: int | None, reason: str | None, cached: int, seen: int
    ) -> tuple[Row, list[Piece]]:
        """Return where a conversation stands after a step of its answer, and the new pieces of that."""
        if not row.is_open:
            return row, []
        pieces = voice.say(token, cast(Any, reason), cached, seen) if voice.answer.finish_reason is None else []
        row = row.said(token, ended=reason == "stop")
        if reason is not None:
            row = row.answered(voice.answer.message, self.forgets)
        return row, pieces

    def leave(self) -> list[list[Piece]]:
        """End the answers that nobody has ended; return the pieces that were held back."""
        rows, voices = self.stream.rows, self.voices
        if rows is None or len(rows) != len(voices) or not any(row.is_open for row in rows):
            return []
        for row, voice in zip(rows, voices, strict=True):
            voice.go_back(row.count)
        heard = [
            self._hear(row, voice, None, voice.answer.finish_reason or "interrupted", cached, seen)
            for row, voice, cached, seen in zip(rows, voices, self._cached(), self.stream.seen, strict=True)
        ]
        self.stream.rows = tuple(row for row, _ in heard)
        return [pieces for _, pieces in heard]

    # ---- what a turn feeds

    def prompts(self, request: Request) -> list[Prompt]:
        """Return what each conversation's turn adds to its stream."""
        rows = self.stream.rows
        if rows is None:
            return [self.template.first_turn(messages, request.options) for messages in request.messages]
        return [
            self.template.next_turn(messages, self.said(row), request.options)
            for messages, row in zip(request.messages, rows, strict=True)
        ]

    def said(self, row: Row) -> Said:
        """Return how the last answer of a conversation ended."""
        tail = self.tokenizer.decode(list(row.tail), skip_special_tokens=False)
        return Said(str(tail), row.ended, row.tool_calls)

    def reading(self, request: Request, prompts: list[Prompt]) -> Reading:
        """Return how the turns are read: what was said but not fed comes first."""
        fresh = Row(transcript=() if self.keeps_transcript else None)
        before = self.stream.rows or (fresh,) * len(prompts)
        asked = zip(before, request.messages, strict=True)
        return Reading(
            prompts=[[*row.unfed, *prompt.ids] for row, prompt in zip(before, prompts, strict=True)],
            rows=tuple(row.asked(messages, self.forgets) for row, messages in asked),
            opening=self._fork_before(prompts),
            options=request.options,
            progress=request.on_progress,
            stopping=request.stopping,
            piece_size=request.piece_size,
        )

    def _fork_before(self, prompts: list[Prompt]) -> int | None:
        """Return how many of the last tokens open the answers, if the streams are to be forked before them."""
        if not (self.forgets and self.template.format.has_thoughts) or self.stream.fork is not None:
            return None
        opening, *others = {prompt.opening for prompt in prompts}
        if others:
            logger.warning("thoughts are kept this time: the chat template opens the answers in several ways.")
            return None
        return opening

    def checked(self, turns: list[list[Message]], options: dict[str, Any] | None) -> list[list[Message]]:
        """Return the messages of each conversation as the template wants them.

        Raises
        ------
        ValueError
            When there is another number of turns than of conversations, or the template has nothing for a role.
        TypeError
            When `options` is no dict of keywords.
        """
        rows = self.stream.rows
        if rows is not None and len(turns) != len(rows):
            raise ValueError(
                f"message has {len(turns)} turns, but this chat holds {len(rows)} conversations; pass one for each, or "
                "reset() the chat."
            )
        if options is not None:
            self.template.check_options(options)
            if rows is not None:
                self.template.check_still_read(options)
        said = [None] * len(turns) if rows is None else list(map(self.said, rows))
        turns = [self.template.with_call_ids(turn, each) for turn, each in zip(turns, said, strict=True)]
        for turn, each in zip(turns, said, strict=True):
            self.template.check_roles(turn, each)
        return turns

    # ---- between turns

    def settling(self, turns: list[list[Message]]) -> Iterator[None]:
        """End what was left of the last turn before the next one begins; results of tools go on with it."""
        self.leave()
        rows = self.stream.rows
        if rows is None or not all(
            messages[0]["role"] in TOOL_ROLES and row.tool_calls for messages, row in zip(turns, rows, strict=True)
        ):
            yield from self.forgetting()

    def ending(self) -> Iterator[None]:
        """End the exchange when the answers are complete; after calls of tools it goes on."""
        if not any(row.tool_calls for row in self.stream.rows or ()):
            yield from self.forgetting()

    def forgetting(self) -> Iterator[None]:
        """Take the thoughts of the last answers out of the stream, where the chat forgets them, piece by piece."""
        stream = self.stream
        if stream.fork is not None and not (yield from self._forget_in(stream)):
            stream.fork = None

    def as_left(self) -> ChatStream:
        """Return a copy of the stream as it were if the answers were left after the words that were handed out."""
        stream = copy.copy(self.stream)
        if stream.rows is not None:
            stream.rows = tuple(starmap(self._as_left, zip_longest(stream.rows, self.voices)))
        if stream.fork is not None:
            stream.fork = replace(stream.fork, cache=copy.deepcopy(stream.fork.cache))
            stream.logs = copy.deepcopy(stream.logs)
            exhaust(self._forget_in(stream), stream)
        return stream

    def _as_left(self, row: Row, voice: AnswerParser | None) -> Row:
        if voice is None or not row.is_open:
            return row
        return row.answered(voice.answer.message, self.forgets)

    def _forget_in(self, stream: ChatStream) -> Generator[None, None, bool]:
        """Take the thoughts out of a stream that has a fork; return whether the template can tell what is left."""
        fork, rows = stream.fork, stream.rows
        assert fork is not None and rows is not None  # an answer was made
        try:
            tokens = [self.template.remembered(list(row.exchange), row.first, fork.options) for row in rows]
        except ValueError as error:
            logger.warning(f"thoughts are kept this time: {error}")
            return False
        cache, rows = yield from stream.forgetting(tokens)
        stream.adopt(cache, rows, tokens)
        return True

    def _cached(self) -> list[int]:
        """Return how many tokens of each conversation are in the cache."""
        cache, seen = self.stream.cache, self.stream.seen
        if not isinstance(cache, AttentionSinkKVCache):
            return seen
        return [min(count, cache.settings.visible_size - 1) for count in seen]

    def in_window(self) -> list[list[int]]:
        """Return for each conversation the numbers, from 1, of the turns of which nothing has been forgotten."""
        stream, rows = self.stream, self.stream.rows or ()
        if not isinstance(stream.cache, AttentionSinkKVCache):
            return [list(range(1, row.turn + 1)) for row in rows]  # nothing is evicted
        sinks, window = stream.cache.settings.sink_size, stream.cache.settings.window_size
        parts = zip(stream.logs, rows, stream.seen, strict=True)
        return [log.whole(row.turn, seen, sinks, window) for log, row, seen in parts]

    def transcripts(self) -> list[list[Message]]:
        """Return all that was said in each conversation, where that is kept."""
        return [copy.deepcopy(list(row.transcript or ())) for row in self.stream.rows or ()]

    def report_evicted(self, on_evict: OnEvict | None) -> None:
        """Let go of what has left the window, and tell of it."""
        stream = self.stream
        if not isinstance(stream.cache, AttentionSinkKVCache) or stream.fork is not None:
            return
        settings = stream.cache.settings
        parts = zip(stream.logs, stream.seen, strict=True)
        left = [log.evict(seen, settings.sink_size, settings.window_size) for log, seen in parts]
        if on_evict is None:
            return
        for conversation, gone in enumerate(left):
            for turn, tokens in gone:
                on_evict(turn, tokens, **({"conversation": conversation} if len(left) > 1 else {}))


def exhaust(pieces: Iterator[None], stream: ChatStream) -> None:
    """Do a work on `stream` to its end, between whose pieces somebody else might do something."""
    with interrupts_held_back() as stream.pressed:
        for _ in pieces:
            pass


def handed_out(pieces: list[list[Piece]] | None, alone: bool) -> Iterator[Any]:
    """Yield the new pieces of one answer; of several, lists with one of each, empty where there is none."""
    if not pieces or alone:
        yield from (pieces[0] if pieces else [])
        return
    for index in range(max(map(len, pieces))):
        yield [row[index] if index < len(row) else Piece("") for row in pieces]
