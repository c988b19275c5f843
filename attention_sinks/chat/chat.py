"""`StreamingChat`: endless conversations that feed each message to the model only once."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar, cast, get_args, overload

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.files import naming
from ..cache.storage import read_file, write_file
from .answer import Answer, AnswerStream, AnswerStreams
from .decoding import Choosing, ends_of, with_defaults
from .messages import Message, Thoughts, Turn, Turns, is_turn, turns_of
from .saved_chat import restored, saved_state
from .stream import ChatStream, Progress
from .template import ChatTemplate
from .turns import OnEvict, Request, TurnTaker

logger = logging.get_logger(__name__)

ChatT = TypeVar("ChatT", bound="StreamingChat")


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
        else `max_length`, else 1,024 limits every answer. An answer ends at the config's end tokens and at the
        tokenizer's.
    pin_system_prompt : bool, default True
        Whether the chat never forgets the system prompt. If so, all tokens before the words of the first message
        become sinks of this chat's cache when they are more than the model's S. The window stays the model's W.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's. It helps where the tokenizer has no template or one that
        cannot stream. The default is the tokenizer's own template.
    chat_template_kwargs : dict, optional
        Keywords for the chat template, such as `{"enable_thinking": False}`.
    tools : list of dict or function, optional
        Tools that the model may call, as `apply_chat_template` takes them: JSON schemas, or Python functions with types
        and a docstring.
    thoughts : "keep" or "forget", default "keep"
        What becomes of the thoughts of an answer. "keep": they stay in the stream as they were said, until they are
        evicted. "forget": after an answer the stream is as if it had been fed without its thoughts, as the chat
        template writes it in a history. While an answer is made, the cache is then in memory twice. Thoughts between
        calls of tools and their results are forgotten with the last answer.
    on_evict : callable, optional
        Called as `on_evict(turn, tokens)` with the number of a turn, from 1, and the list of its tokens that have left
        the window: after a message is read, and after an answer. Chats of several conversations also pass
        `conversation`, a number from 0. What `thoughts="forget"` takes out has not left the window.
    keep_transcript : bool, default False
        Whether `transcript` keeps all messages and answers as text. It grows with the conversation.
    autosave : str or os.PathLike, optional
        The chat is saved to this file after every turn. An answer that was left is saved with the next turn, or by
        `stop()`.
    compile : bool, default False
        Whether steps of single tokens run in one graph of `torch.compile`. It is compiled with the first answer, which
        takes a minute or two; see the guide on compiling.

    Attributes
    ----------
    cache : AttentionSinkKVCache
        The cache that holds the streams of the conversations, one row for each.

    Raises
    ------
    ValueError
        When the model has no head or no attention sinks, the chat template cannot stream or ignores the tools, or the
        model's steps cannot be compiled.
    TypeError
        When `system` is no text, `tools` no list, or `chat_template_kwargs` no dict of keywords.
    OSError
        When there is no folder for `autosave`, or it cannot be written.
    NotImplementedError
        When there is `autosave`, but no file can hold the chat's cache.

    Examples
    --------
    >>> chat = StreamingChat(model, tokenizer, system="You are a helpful assistant.")
    >>> for piece in chat.send("Hello!"):
    ...     print(piece, end="", flush=True)
    >>> print(chat.ask("And in French?"))
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
        chat_template_kwargs: dict[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        thoughts: Thoughts = "keep",
        on_evict: OnEvict | None = None,
        keep_transcript: bool = False,
        autosave: str | os.PathLike[str] | None = None,
        compile: bool = False,
    ) -> None:
        self.model = cast(Any, model)  # a PeftModel passes on what it lacks, which no type says
        self.tokenizer = tokenizer
        if not self.model.can_generate():
            raise ValueError(
                f"model={type(model).__name__} cannot generate; use a model loaded with AutoModelForCausalLM."
            )
        if thoughts not in get_args(Thoughts):
            raise ValueError(f"thoughts={thoughts!r} must be 'keep' or 'forget'.")
        _check_callable("on_evict", on_evict, "turn and tokens, and conversation= where there are several")
        self.template = ChatTemplate(tokenizer, system, chat_template, tools, chat_template_kwargs)
        self.format = self.template.format
        self.thoughts: Thoughts = thoughts
        self.on_evict, self.keep_transcript = on_evict, keep_transcript
        self.autosave = None if autosave is None else _writable(autosave)
        self.generation_config: GenerationConfig = copy.deepcopy(generation_config or self.model.generation_config)
        cache = self.make_cache(len(self.template.prefix()) if pin_system_prompt else 0)
        if autosave is not None:
            self._check_can_save(cache, "autosave")
        self._warn_of_ends()
        self._stream = ChatStream(self.model, cache, compiles=compile and self._can_compile(cache))
        self._turns = TurnTaker(tokenizer, self.template, self._stream, thoughts == "forget", keep_transcript)
        self._turn: Callable[[], Any] = lambda: None  # a weak reference to the answer that is being made
        self._stopping = threading.Event()  # of that answer

    def make_cache(self, sink_size: int) -> AttentionSinkKVCache:
        """Make the cache of this chat, with the model's sizes but at least `sink_size` sinks.

        A subclass may make another cache here. A chat in a cache of another class cannot be saved.
        """
        settings = setup_of(self.model).settings
        return AttentionSinkKVCache(self.model, max(sink_size, settings.sink_size), settings.window_size)

    @property
    def cache(self) -> AttentionSinkKVCache:
        return cast(AttentionSinkKVCache, self._stream.cache)

    # ---- talking

    @overload
    def send(
        self, message: Turn, *, on_progress: Progress | None = None, chat_template_kwargs: dict[str, Any] | None = None
    ) -> AnswerStream: ...

    @overload
    def send(
        self,
        message: Turns,
        *,
        on_progress: Progress | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> AnswerStreams: ...

    def send(
        self,
        message: Turn | Turns,
        *,
        on_progress: Progress | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> AnswerStream | AnswerStreams:
        """Send a message and return the answer, which the model makes while it is read.

        The model reads nothing before the first piece is asked for. Five things stop the answer: closing it, leaving
        its loop, `stop()`, Ctrl-C and sending the next message. The words said until then stay in the stream, and the
        next turn closes the answer.

        A long message is read in pieces of 256 tokens. `stop()` and Ctrl-C take effect after the piece that is being
        read, and the chat is then as it was before the message. Meanwhile the cache is in memory twice. A dense prefill
        and some hybrid models cannot be read in pieces; they obey once the message is read.

        Parameters
        ----------
        message : str, dict or list
            The text of a user's message, of any length; or a message as `apply_chat_template` takes it, with `role` and
            `content`; or a list of messages, such as the results of tools (`{"role": "tool", "name": …, "content":
            …}`). A list of texts, or of lists of messages, has a turn for each of several conversations, the same
            number every time. Messages are text: special tokens that they spell have no effect.
        on_progress : callable, optional
            Called as `on_progress(read, total)` after each piece of the message, with the tokens of the longest row
            that have been read and that there are. It may call `stop()`, and it may raise.
        chat_template_kwargs : dict, optional
            Keywords for the chat template in this turn, beside those of the chat.

        Returns
        -------
        AnswerStream or AnswerStreams
            An iterator over pieces of the answer, most of them a word, which also tells its text, thoughts, calls of
            tools, why it ended, and how many tokens it took. For several conversations, an iterator over lists with one
            piece of each; a piece is empty when that answer has no new word or has ended. `async for` reads both.

        Raises
        ------
        TypeError
            When `message` is none of the forms, `on_progress` cannot be called, or `chat_template_kwargs` is no dict of
            keywords.
        ValueError
            When there is another number of turns than the chat has conversations, or the chat template has nothing for
            the role of a message; or, with the first piece, when the generation config cannot stream.
        RuntimeError
            When another thread is making an answer of this chat. After any error before the message is read to its end,
            the chat is as it was.
        """
        _check_callable("on_progress", on_progress, "two numbers")
        options = dict(chat_template_kwargs) if isinstance(chat_template_kwargs, dict) else chat_template_kwargs
        turns = self._checked(message, options)
        self.stop()
        answers, alone = [Answer() for _ in turns], is_turn(message)
        request = Request(turns, alone, answers, Choosing(self.generation_config), options, on_progress, self.on_evict)
        turn = self._take_turn(request)
        self._turn, self._stopping = weakref.ref(turn), request.stopping
        return AnswerStream(turn, self.stop, answers[0]) if alone else AnswerStreams(turn, self.stop, answers)

    asend = send
    """The same, for an event loop: `async for piece in chat.asend("Hello!")`. Steps are made in threads; cancelling
    the task stops the answer."""

    @overload
    def ask(self, message: Turn, **options: Any) -> Answer: ...

    @overload
    def ask(self, message: Turns, **options: Any) -> list[Answer]: ...

    def ask(self, message: Turn | Turns, **options: Any) -> Answer | list[Answer]:
        """Send a message and return the finished answer; for several conversations a list of answers.

        Parameters and errors are those of `send`. `str(answer)` is its text.
        """
        stream = self.send(cast(Any, message), **options)
        for _ in cast(Iterable[Any], stream):
            pass
        return stream.answers if isinstance(stream, AnswerStreams) else stream.answer

    def stop(self) -> None:
        """Stop the answer that is being made, if there is one. The chat can go on.

        Where another thread makes the answer, it ends with the step or the piece of the message that is being made.
        """
        turn = self._turn()
        self._stopping.set()
        if turn is not None and not turn.gi_running:
            was_made = any(voice.answer.finish_reason is None for voice in self._turns.voices)
            turn.close()
            if was_made and self._stream.rows is not None:
                self._autosave()

    def reset(self) -> None:
        """Forget the conversations. The next message begins new ones, of any number."""
        self._check_idle("reset")
        self.stop()
        self._turns.reset()

    # ---- what it knows

    @property
    def turns_in_window(self) -> list[int] | list[list[int]]:
        """The numbers, from 1, of the turns of which nothing has been forgotten; for several conversations a list each.

        A turn is its messages and the answer. An earlier turn may still be remembered in part.
        """
        found = self._turns.in_window()
        return found if len(found) > 1 else (found[0] if found else [])

    @property
    def transcript(self) -> list[Message] | list[list[Message]] | None:
        """All messages and answers, for several conversations a list each; None without `keep_transcript`."""
        if not self.keep_transcript:
            return None
        found = self._turns.transcripts()
        return found if len(found) > 1 else (found[0] if found else [])

    def __repr__(self) -> str:
        rows, cache = self._stream.rows or (), self._stream.cache
        name = getattr(self.model.config, "name_or_path", "") or type(self.model).__name__
        turns = max((row.turn for row in rows), default=0)
        seen = self._stream.seen
        cached = cache.tokens_cached.tolist() if isinstance(cache, AttentionSinkKVCache) else seen
        nbytes = f", nbytes={cache.nbytes}" if isinstance(cache, AttentionSinkKVCache) else ""
        return (
            f"{type(self).__name__}(model={name!r}, turns={turns}, tokens_seen={seen}, tokens_cached={cached}{nbytes})"
        )

    # ---- saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversations to one safetensors file, from which `load` continues, even amid an answer.

        The file holds the cache, the tokens that are not in the cache yet, the system prompt, the chat template with
        its keywords and tools, the generation config and the transcript, where there is one. A file that is already at
        `path` is replaced once the new one is complete, which keeps its mode; a new file is readable by its owner
        alone. Amid an answer whose thoughts are to be forgotten, what was said of it stays a part of it: the file holds
        the chat as if the answer had been stopped.

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
        self._check_can_save(self._stream.cache, "save")
        self._check_idle("save")
        self._save(path)

    def _check_can_save(self, cache: Any, action: str) -> None:
        """Raise NotImplementedError when no file can hold such a cache."""
        if not isinstance(cache, AttentionSinkKVCache):
            raise NotImplementedError(f"a chat in a {type(cache).__name__} cannot be saved; use a StreamingChat.")
        cache.layer_stack.check_has_no_states(action)

    def _save(self, path: str | os.PathLike[str]) -> None:
        stream = self._turns.as_left()
        tensors, cache = stream.cache.snapshot()
        write_file(path, tensors, saved_state(self, cache, stream))

    @classmethod
    def load(
        cls: type[ChatT],
        path: str | os.PathLike[str],
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        generation_config: GenerationConfig | None = None,
        on_evict: OnEvict | None = None,
        autosave: str | os.PathLike[str] | None = None,
        compile: bool = False,
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
        on_evict, autosave, compile
            As at construction; no file holds them.

        Raises
        ------
        OSError
            When there is no such file, or `path` is a folder, a FIFO, a device or a socket.
        ValueError
            When the file is truncated, altered or of another kind, or its chat belongs to another model or tokenizer.
        """
        setup_of(model)  # raises what concerns the model alone
        tensors, state = read_file(path)
        with naming(path):
            found = restored(model, tensors, state, generation_config)
        options: dict[str, Any] = {"on_evict": on_evict, "autosave": autosave, "compile": compile}
        chat = cls(model, tokenizer, **found.saved.arguments(generation_config), **options)
        with naming(path):
            found.check_template(chat.template)
        found.put_into(chat._stream)
        return chat

    # ---- one turn

    def _checked(self, message: Any, options: Any) -> list[list[Message]]:
        """Return the messages of each conversation, or raise what `send` raises."""
        self._check_idle("send")
        turns = self._turns.checked(turns_of(message), options)
        if self.thoughts == "forget" and len(turns) > 1 and _keeps_states(self.cache):
            raise ValueError(
                f"thoughts='forget' is not possible for {len(turns)} conversations at once on a model that keeps "
                "states beside its attention, which cannot be fed answers of different lengths; use a chat for each, "
                "or thoughts='keep'."
            )
        return turns

    def _take_turn(self, request: Request) -> Generator[Any, None, None]:
        """Yield the pieces of a turn; then tell what was evicted, and save."""
        if not (yield from self._turns.take(request)):
            return
        try:
            self._turns.report_evicted(self.on_evict)
        finally:
            self._autosave()

    def _autosave(self) -> None:
        """Save the chat where it saves itself; an error says that the turn is complete all the same."""
        if self.autosave is None:
            return
        try:
            self._save(self.autosave)
        except OSError as error:
            raise OSError(
                f"autosave={self.autosave!r} could not be written ({error}). The turn is complete; make room or the "
                "folder again, and the next turn saves it."
            ) from error

    def _check_idle(self, action: str) -> None:
        """Raise RuntimeError while a step of an answer is being made: in another thread, or around this call."""
        turn = self._turn()
        if turn is not None and turn.gi_running:
            raise RuntimeError(
                f"{action}() was called while the chat makes an answer, in another thread or around this call; call "
                "stop() and wait until that answer has ended."
            )
        self._stream.settle()

    # ---- at construction

    def _warn_of_ends(self) -> None:
        """Warn when nothing that the template closes an answer with is an end token, so that the model may talk on."""
        config = with_defaults(self.generation_config, self.model.generation_config)
        known = [
            end for end in ends_of(config, self.tokenizer) if isinstance(end, int) and 0 <= end < len(self.tokenizer)
        ]
        ends = {str(self.tokenizer.convert_ids_to_tokens(end)) for end in known}
        closing = self.template.closing()
        written = [token for token in self.template.encoder.control_tokens if token in closing]
        if written and not any(end in closing or self.format.mentions(token) for end in ends for token in written):
            logger.warning(
                f"the chat template closes an answer with {closing!r:.60}, of which no token ends an answer "
                f"({', '.join(sorted(map(repr, ends))) or 'none'} would), so the model may talk on; pass a "
                "generation_config with that eos_token_id."
            )

    def _can_compile(self, cache: Any) -> bool:
        """Return True, and say what compiling costs; ValueError when the steps of this cache cannot be compiled."""
        if not getattr(cache, "is_compileable", False) or not isinstance(cache, AttentionSinkKVCache):
            raise ValueError(
                f"compile=True: the steps of a {type(self.model).__name__} in a {type(cache).__name__} cannot be "
                "compiled; leave compile out."
            )
        logger.warning(
            "compile=True: the first answer compiles the model's step, which may take a minute or two; the steps after "
            "that are faster."
        )
        return True


def _keeps_states(cache: Any) -> bool:
    return isinstance(cache, AttentionSinkKVCache) and cache.layer_stack.keeps_states


def _check_callable(name: str, function: Any, arguments: str) -> None:
    if function is not None and not callable(function):
        raise TypeError(f"{name}={function!r:.80} cannot be called; pass a function of {arguments}.")


def _writable(path: str | os.PathLike[str]) -> str:
    """Return the path of a file that can be written; OSError otherwise."""
    path = os.path.abspath(os.fspath(path))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        raise OSError(f"autosave={path!r} cannot be written; pass a file in a folder that exists and is yours.")
    return path
