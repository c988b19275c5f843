"""`StreamPool`: many conversations on one model, which join and leave one running batch."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..cache.cache import AttentionSinkKVCache
from ..chat.messages import Thoughts
from ..sessions.files import check_name
from ..sessions.store import SessionInfo, SessionStore
from ..settings import SinkSettings
from .batch import Batch
from .conversation import Conversation
from .host import Host
from .numbers import PoolNumbers
from .talk import SETTINGS, Talk, Talks
from .unnamed import Unnamed

SESSION_BYTES = 1 << 30
"""So many bytes of conversations stay in memory between their turns where nothing else is asked for."""


class StreamPool:
    """Many endless conversations on one model, as many at once as there are rows, each as if it were alone.

    One thread owns the model. In every step it serves all conversations that are being answered; beside the steps it
    reads messages in small pieces, so that nobody waits for a long text. Between their turns conversations sleep, in
    memory and in a folder, and a process that is killed loses no turn that has ended.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A model with attention sinks injected. Nobody else should call or change it while the pool is open.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    rows : int, default 8
        How many conversations are served at once. A row takes the memory of one cache while it is used.
    sessions : str or os.PathLike, optional
        A folder in which conversations with a name are kept: a local one, or any that fsspec knows, such as
        `s3://bucket/folder`. Without one they last as long as the pool.
    max_session_bytes : int, optional
        How many bytes of conversations stay in memory between their turns, when they are in a folder as well. Those
        used least recently go first. Default: 1 GiB.
    session_expiry : float, optional
        Seconds after their last turn for which sessions are kept. Default: for ever.
    storage_options : dict, optional
        Options for the file system of `sessions`.
    max_waiting : int, optional
        How many turns may wait for a row before the next one is refused. Default: any number.
    chunk_size : int, default 32
        How many tokens of messages are read between two steps. More of them let messages be read faster, and those who
        are being answered wait longer.
    shared_beginnings : int, default 4
        How many beginnings, such as system prompts, are kept for conversations that begin alike, each in a cache.
    attention_sink_size : int, optional
        S of all conversations. The default is the model's, and at least what keeps `system` for ever. A conversation
        whose own system prompt has more tokens forgets the rest of it in time.
    generation_config : GenerationConfig, optional
        How answers are chosen, where `send` is given no other. Default: the model's.
    compile : bool, default False
        Whether steps run in one graph of `torch.compile`, which has all rows always. The first step takes a minute or
        two.
    cache_class : type, default AttentionSinkKVCache
        The class of all caches: a subclass where caches do more than is done here.
    system, chat_template, chat_template_kwargs, tools, thoughts, keep_transcript
        As for `StreamingChat`; a conversation may have its own, see `conversation`.

    Raises
    ------
    ValueError
        When a number is out of range, or as for `StreamingChat`.
    OSError
        When the folder of sessions cannot be written.

    Examples
    --------
    >>> with StreamPool(model, tokenizer, rows=8, sessions="sessions") as pool:
    ...     alice, bob = pool.conversation("alice"), pool.conversation("bob")
    ...     answers = [alice.send("Hello!"), bob.send("Tell me a story.")]
    ...     for piece in answers[0]:
    ...         print(piece, end="", flush=True)
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: int = 8,
        *,
        sessions: str | os.PathLike[str] | None = None,
        max_session_bytes: int | None = None,
        session_expiry: float | None = None,
        storage_options: dict[str, Any] | None = None,
        max_waiting: int | None = None,
        chunk_size: int = 32,
        shared_beginnings: int = 4,
        attention_sink_size: int | None = None,
        generation_config: GenerationConfig | None = None,
        compile: bool = False,
        cache_class: type[AttentionSinkKVCache] = AttentionSinkKVCache,
        system: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        tools: Sequence[Any] | None = None,
        thoughts: Thoughts = "keep",
        keep_transcript: bool = False,
    ) -> None:
        _check_count("rows", rows, 1)
        _check_count("chunk_size", chunk_size, 1)
        _check_count("shared_beginnings", shared_beginnings, 0)
        if max_waiting is not None:
            _check_count("max_waiting", max_waiting, 0)
        if sessions is None and max_session_bytes is not None:
            raise ValueError("max_session_bytes needs a folder for what does not stay in memory; pass sessions.")
        defaults = {
            "system": system,
            "chat_template": chat_template,
            "chat_template_kwargs": chat_template_kwargs,
            "tools": tools,
            "thoughts": thoughts,
            "keep_transcript": keep_transcript,
        }
        self._talks = Talks(model, tokenizer, defaults, attention_sink_size, cache_class)
        self.generation_config = copy.deepcopy(generation_config or cast(Any, model).generation_config)
        self._check_model(compile, sessions is not None)
        self._store: SessionStore[Talk] = SessionStore(
            sessions,
            to_file=self._talks.to_file,
            from_file=self._talks.from_file,
            size_of=_size_of,
            max_bytes=SESSION_BYTES if sessions is not None and max_session_bytes is None else max_session_bytes,
            expire_after=session_expiry,
            storage_options=storage_options,
        )
        self._host = Host(Batch(model, rows, compile), chunk_size, shared_beginnings, max_waiting)
        self._finalizer = weakref.finalize(self, _close, self._host, self._store)

    def conversation(self, name: str | None = None, **options: Any) -> Conversation:
        """Return the conversation with that name: a new one, or one that goes on where it stood.

        Parameters
        ----------
        name : str, optional
            The name of its session. Default: none; it then ends with the object that is returned.
        **options
            `system`, `tools`, `chat_template`, `chat_template_kwargs`, `thoughts` and `keep_transcript`, as for
            `StreamingChat`, in the place of the pool's. A session keeps those that it was begun with.

        Raises
        ------
        ValueError, TypeError
            When a setting is wrong, as for `StreamingChat`, or the name is no text or too long.
        """
        if unknown := options.keys() - set(SETTINGS):
            raise TypeError(f"conversation() has no {sorted(unknown)[0]!r}; pass {', '.join(SETTINGS)} or nothing.")
        self._talks.check(options)
        if name is not None:
            check_name(name)
        open_it = Unnamed().open if name is None else partial(self._store.open, name)
        return Conversation(self, self._host, self._talks, open_it, name, options, self.generation_config)

    # ---- sessions

    def sessions(self) -> Sequence[SessionInfo]:
        """Return the conversations with a name, those used last first. A damaged file is warned of and left out."""
        return self._store.list()

    def delete(self, name: str) -> bool:
        """Delete a session, in memory and in the folder, and return whether there was one.

        Raises
        ------
        SessionInUseError
            While it is being answered.
        """
        return self._store.delete(name)

    def expire(self) -> Sequence[str]:
        """Delete the sessions whose last turn is longer ago than `session_expiry`; return their names."""
        return self._store.expire()

    # ---- the pool

    @property
    def sizes(self) -> SinkSettings:
        """How many sinks and last tokens every conversation has."""
        return self._talks.sizes

    @property
    def numbers(self) -> PoolNumbers:
        """What the pool does, and has done since it was made."""
        return self._host.numbers(self._store.nbytes)

    def close(self) -> None:
        """Stop all answers, save their conversations and end the pool's thread."""
        self._finalizer()

    def __enter__(self) -> StreamPool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        numbers = self.numbers
        return (
            f"{type(self).__name__}(rows={numbers.rows}, rows_in_use={numbers.rows_in_use}, "
            f"waiting={numbers.waiting}, {self._talks.sizes})"
        )

    def _check_model(self, compiles: bool, saves: bool) -> None:
        """Refuse what the caches of the model cannot do."""
        cache = self._talks.new({}).stream.cache
        if saves:
            cache.check_can_be_saved("sessions=…")
        if compiles and not cache.is_compileable:
            raise ValueError("compile=True: the steps of this model cannot be compiled; leave compile out.")


def _size_of(talk: Talk) -> int:
    return talk.nbytes


def _close(host: Host, store: SessionStore[Talk]) -> None:
    host.close()
    store.close()


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is no whole number; pass an int.")
    if value < least:
        raise ValueError(f"{name}={value} is too small; pass {least} or more.")
