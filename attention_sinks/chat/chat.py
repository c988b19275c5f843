"""`StreamingChat`: endless conversations that feed each message to the model only once."""

from __future__ import annotations

import copy
import json
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar, cast, overload

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.files import naming
from ..cache.schema import checked
from ..cache.storage import read_file, write_file
from ..versions import CACHE
from .decoding import Feed, Said, decode
from .interrupts import interrupts_held_back
from .saved_chat import ChatState, check_unfed, generation_config_of
from .template import ChatTemplate
from .text import AnswerText

PIECE = 256
"""A longer message is read in pieces of this many columns. Between two pieces the reading can be stopped."""

Progress = Callable[[int, int], Any]
"""It is told how many columns of a message have been read, and how many there are."""

ChatT = TypeVar("ChatT", bound="StreamingChat")


class _Stopped(Exception):
    """The reading of a message has been stopped."""


class StreamingChat:
    """A conversation that never ends, or several at once, at constant memory and cost per token.

    A turn feeds only the tokens that the model's chat template adds for it; the cache holds the past. The model's
    answers stay in the stream as the model wrote them.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A model with attention sinks injected.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    system : str, optional
        System prompt. By default the chat template decides, which may have a system prompt of its own.
    generation_config : GenerationConfig, optional
        How answers are chosen, greedily or by sampling, and where they end. It may be changed between turns. Values
        that it leaves open come from the model's own generation config. The default is that config. `max_new_tokens`,
        else `max_length`, else 1,024 limits every answer.
    pin_system_prompt : bool, default True
        Whether the chat never forgets the system prompt. If so, all tokens before the words of the first message
        become sinks of this chat's cache when they are more than the model's S. The window stays the model's W.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's. It helps where the tokenizer has no template or one that
        rewrites earlier messages. The default is the tokenizer's own template.

    Attributes
    ----------
    cache : AttentionSinkKVCache
        The cache that holds the streams of the conversations, one row for each.

    Raises
    ------
    ValueError
        When the model has no head or no attention sinks, or the chat template cannot stream.
    TypeError
        When `system` is no text.

    Examples
    --------
    >>> chat = StreamingChat(model, tokenizer, system="You are a helpful assistant.")
    >>> for piece in chat.send("Hello!"):
    ...     print(piece, end="", flush=True)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        generation_config: GenerationConfig | None = None,
        pin_system_prompt: bool = True,
        chat_template: str | None = None,
    ) -> None:
        self.model = cast(Any, model)  # a PeftModel passes on what it lacks, which no type says
        self.tokenizer = tokenizer
        if not self.model.can_generate():
            raise ValueError(
                f"model={type(model).__name__} cannot generate; use a model loaded with AutoModelForCausalLM."
            )
        self.template = ChatTemplate(tokenizer, system, chat_template)
        self.generation_config: GenerationConfig = copy.deepcopy(generation_config or self.model.generation_config)
        self.cache = self.make_cache(len(self.template.prefix()) if pin_system_prompt else 0)
        # By the length of the cache: the tokens of each row that were said but not fed when it had that length.
        self._unfed_at: dict[int, list[list[int]]] = {}
        self._unread: AttentionSinkKVCache | None = None  # the cache without the message that is being read in pieces
        self._turn: Callable[[], Any] = lambda: None  # a weak reference to the answer that is being made
        self._stopping = threading.Event()  # of that answer
        self._pressed: Callable[[], bool] = bool  # whether Ctrl-C was pressed in the step that is being made

    def make_cache(self, sink_size: int) -> AttentionSinkKVCache:
        """Make the cache of this chat, with the model's sizes but at least `sink_size` sinks.

        A subclass may make another cache here. A chat in a cache of another class cannot be saved.
        """
        settings = setup_of(self.model).settings
        return AttentionSinkKVCache(self.model, max(sink_size, settings.sink_size), settings.window_size)

    @overload
    def send(self, text: str, *, progress: Progress | None = None) -> Iterator[str]: ...

    @overload
    def send(self, text: list[str] | tuple[str, ...], *, progress: Progress | None = None) -> Iterator[list[str]]: ...

    def send(
        self, text: str | list[str] | tuple[str, ...], *, progress: Progress | None = None
    ) -> Iterator[str] | Iterator[list[str]]:
        """Send a message and return an iterator over the answer, which the model makes while it is read.

        The model reads nothing before the first piece is asked for. Five things stop the answer: closing the iterator,
        leaving its loop, `stop()`, Ctrl-C and sending the next message. The words said until then stay in the stream,
        and the next turn closes the answer.

        A long message is read in pieces of 256 tokens. `stop()` and Ctrl-C take effect after the piece that is being
        read, and the chat is then as it was before the message. Meanwhile the cache is in memory twice. A dense prefill
        and some hybrid models cannot be read in pieces; they obey once the message is read.

        Parameters
        ----------
        text : str, list of str or tuple of str
            A message of any length. A list or tuple has one message for each of several conversations, the same number
            in every turn.
        progress : callable, optional
            Called as `progress(read, total)` after each piece of the message, with the tokens of the longest row that
            have been read and that there are. It may call `stop()`, and it may raise.

        Returns
        -------
        iterator of str, or of list of str
            Pieces of the answer, most of them a word. For several conversations, lists with one piece of each; a piece
            is empty when that answer has no new word or has ended.

        Raises
        ------
        TypeError
            When `text` is not text, or `progress` cannot be called.
        ValueError
            When `text` has another number of messages than the chat has conversations; or, with the first piece, when
            the generation config cannot stream.
        RuntimeError
            When another thread is making an answer of this chat. After any error before the message is read to its end,
            the chat is as it was.
        """
        if progress is not None and not callable(progress):
            raise TypeError(f"progress={progress!r:.80} cannot be called; pass a function of two numbers.")
        texts = self._checked(text)
        self.stop()
        stopping = threading.Event()
        turn = self._take_turn(texts, isinstance(text, str), partial(self._feed, progress, stopping), stopping)
        self._turn, self._stopping = weakref.ref(turn), stopping
        return turn

    def stop(self) -> None:
        """Stop the answer that is being made, if there is one. The chat can go on.

        Where another thread makes the answer, it ends with the step or the piece of the message that is being made.
        """
        turn = self._turn()
        self._stopping.set()
        if turn is not None and not turn.gi_running:
            turn.close()

    def reset(self) -> None:
        """Forget the conversations. The next message begins new ones, of any number."""
        self._check_idle("reset")
        self.stop()
        self.cache.reset()

    def _checked(self, text: Any) -> list[str]:
        """Return the message of each conversation, or raise what `send` raises."""
        self._check_idle("send")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
            raise TypeError(f"text={text!r:.80} must be a str, or a list of them for several conversations.")
        if not texts:
            raise ValueError("text=[] has no message; pass one for each conversation.")
        if self._unfed is not None and len(texts) != len(self._unfed):
            raise ValueError(
                f"text has {len(texts)} messages, but this chat holds {len(self._unfed)} conversations; pass one "
                "message for each, or reset() the chat."
            )
        return list(texts)

    # ---- saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversations to one safetensors file, from which `load` continues, even amid an answer.

        The file holds the cache, the tokens that are not in the cache yet, the system prompt, the chat template and the
        generation config. A file that is already at `path` is replaced once the new one is complete, which keeps its
        mode; a new file is readable by its owner alone.

        Parameters
        ----------
        path : str or os.PathLike
            The file to write.

        Raises
        ------
        OSError
            When the file cannot be written, or `path` is a folder, a FIFO, a device or a socket.
        NotImplementedError
            When the chat's cache is not an `AttentionSinkKVCache`.
        """
        if not isinstance(self.cache, AttentionSinkKVCache):
            raise NotImplementedError(f"a chat in a {type(self.cache).__name__} cannot be saved; use a StreamingChat.")
        self._check_idle("save")
        tensors, cache = self.cache.snapshot()
        state = {
            "kind": "StreamingChat",
            "cache": cache,
            "unfed": self._unfed,
            "system": self.template.system,
            "chat_template": self.template.chat_template,
            "turn": self.template.next_turn(""),
            "generation_config": json.loads(self.generation_config.to_json_string()),
        }
        write_file(path, tensors, state)

    @classmethod
    def load(
        cls: type[ChatT],
        path: str | os.PathLike[str],
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        generation_config: GenerationConfig | None = None,
    ) -> ChatT:
        """Restore the chat that was saved to `path`.

        A chat template in the file is rendered, in the sandbox of Transformers, as one that comes with a tokenizer is.

        Parameters
        ----------
        path : str or os.PathLike
            The file that `save` wrote.
        model, tokenizer : PreTrainedModel or PeftModel, PreTrainedTokenizerBase
            The model and tokenizer of the saved chat, or the same checkpoint loaded anew.
        generation_config : GenerationConfig, optional
            It takes the place of the saved one.

        Raises
        ------
        OSError
            When there is no such file, or `path` is a folder, a FIFO, a device or a socket.
        ValueError
            When the file is truncated, altered or of another kind, or its chat belongs to another model or tokenizer.
        """
        config = setup_of(model).model.config
        tensors, state = read_file(path)
        with naming(path):
            saved = checked(ChatState, state)
            cache = AttentionSinkKVCache.from_snapshot(model, tensors, saved.cache)
            check_unfed(saved.unfed, cache.batch_size, config.vocab_size)
            if generation_config is None:
                generation_config = generation_config_of(saved.generation_config)
        chat = cls(
            model,
            tokenizer,
            system=saved.system,
            generation_config=generation_config,
            chat_template=saved.chat_template,
        )
        if chat.template.next_turn("") != saved.turn:
            raise ValueError(
                f"path={str(path)!r} holds a chat with another tokenizer or chat template; use those it was saved with."
            )
        chat.cache = cache
        if saved.unfed is not None:
            chat._unfed_at = {cache.get_seq_length(): saved.unfed}
        return chat

    # ---- one turn

    def _take_turn(
        self, texts: list[str], alone: bool, feed: Feed, stopping: threading.Event
    ) -> Generator[Any, None, None]:
        """Yield lists with a piece of each answer or, for a conversation `alone`, its pieces."""
        answers = [AnswerText(self.tokenizer) for _ in texts]
        steps = decode(self.model, self.tokenizer, self._new_tokens(texts), self.generation_config, feed)
        while not stopping.is_set() and (step := self._next(steps)) is not None:
            pieces = [answer.add(token, ended) for answer, token, ended in zip(answers, *step, strict=True)]
            if any(pieces):
                yield pieces[0] if alone else pieces

    def _new_tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens that each row feeds: those that were said but not fed, and those that this turn adds."""
        unfed = self._unfed
        if unfed is None:
            return [self.template.first_turn(text) for text in texts]
        return [before + self.template.next_turn(text) for before, text in zip(unfed, texts, strict=True)]

    def _next(self, steps: Iterator[Said]) -> Said | None:
        """Run one step and note its tokens as unfed. Ctrl-C waits until both are done, or until a piece is read."""
        with interrupts_held_back() as self._pressed:
            try:
                step = next(steps, None)
            except _Stopped:
                step = None
            finally:
                self._settle()
            if step is not None and (before := self._unfed) is not None:
                said = zip(before, step[0], strict=True)
                unfed = [tokens if token is None else [*tokens, token] for tokens, token in said]
                self._unfed_at = {self.cache.get_seq_length(): unfed}
        return step

    # ---- reading

    @property
    def _unfed(self) -> list[list[int]] | None:
        """The tokens of each row that were said but not fed; None before the first turn."""
        return self._unfed_at.get(self.cache.get_seq_length())

    def _feed(
        self,
        progress: Progress | None,
        stopping: threading.Event,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **arguments: Any,
    ) -> torch.Tensor:
        """Feed the columns [batch, n] that the mask keeps. A row that has fed a token has no unfed tokens any more.

        That is noted beforehand for the length that the cache will have, so that it is true as soon as it has it.
        """
        columns, length, before = input_ids.shape[1], self.cache.get_seq_length(), self._unfed
        fed = [True] * len(input_ids) if attention_mask is None else attention_mask.any(dim=1).tolist()
        unfed = [[] if row_fed else tokens for row_fed, tokens in zip(fed, before or [[]] * len(fed), strict=True)]
        self._unfed_at = {length + columns: unfed} if before is None else {length: before, length + columns: unfed}
        size = PIECE if columns > PIECE and self._can_read_in_pieces(attention_mask) else columns
        if size < columns:
            self._unread = copy.deepcopy(self.cache)
        for start in range(0, columns, size):
            if start and (stopping.is_set() or self._pressed()):
                raise _Stopped
            piece = slice(start, start + size)
            outputs = self.model(
                input_ids=input_ids[:, piece],
                attention_mask=None if attention_mask is None else attention_mask[:, piece],
                use_cache=True,
                **{CACHE: self.cache},
                **arguments,
            )
            if progress is not None and columns > 1:
                progress(min(piece.stop, columns), columns)
        logits: torch.Tensor = outputs.logits
        return logits

    def _can_read_in_pieces(self, attention_mask: torch.Tensor | None) -> bool:
        setup = setup_of(self.model)
        padded_states = attention_mask is not None and setup.has_states
        return setup.settings.prefill == "streaming" and setup.architecture.states_continue and not padded_states

    def _check_idle(self, action: str) -> None:
        """Raise RuntimeError while a step of an answer is being made: in another thread, or around this call."""
        turn = self._turn()
        if turn is not None and turn.gi_running:
            raise RuntimeError(
                f"{action}() was called while the chat makes an answer, in another thread or around this call; call "
                "stop() and wait until that answer has ended."
            )
        self._settle()

    def _settle(self) -> None:
        """Take back what has been read of a message that was not read to its end."""
        if self._unread is not None:
            whole = self.cache.get_seq_length() in self._unfed_at
            self.cache, self._unread = (self.cache if whole else self._unread), None
