"""One conversation of a pool: the settings that it shares with others, and its own stream."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from ..cache.cache import AttentionSinkKVCache
from ..chat.chat import StreamingChat
from ..chat.saved_chat import restored, saved_state, settings_of
from ..chat.stream import ChatStream
from ..chat.turns import TurnTaker
from ..settings import SinkSettings

logger = logging.get_logger(__name__)

SETTINGS = ("system", "tools", "chat_template", "chat_template_kwargs", "thoughts", "keep_transcript")
"""What conversations of one pool may have of their own, by the names of arguments of `StreamingChat`."""

KEPT = 64
"""The settings of so many kinds of conversations are kept ready, those used last."""


@dataclass
class Talk:
    """A conversation in memory.

    Attributes
    ----------
    chat : StreamingChat
        Its settings. Conversations with equal ones share it, and nobody talks in it.
    prefix : tuple of int
        The tokens before the words of the first message.
    stream : ChatStream
        Where it stands.
    turns : TurnTaker
        Takes its turns.
    left : ChatStream or None
        Where it would stand if it were left now, when that is not where it stands: its last answer calls tools, and its
        thoughts are not forgotten yet.
    """

    chat: StreamingChat
    prefix: tuple[int, ...]
    stream: ChatStream
    turns: TurnTaker
    left: ChatStream | None = None

    @property
    def count(self) -> int:
        """How many turns it has had."""
        rows = self.stream.rows
        return 0 if rows is None else rows[0].turn

    @property
    def nbytes(self) -> int:
        """Bytes of its cache, and of the fork that it may have."""
        fork = self.stream.fork
        caches = [self.stream.cache] if fork is None else [self.stream.cache, fork.cache]
        return sum(int(cache.nbytes) for cache in caches)


class Talks:
    """Make conversations, new ones and those that were saved, and write them down.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel or PeftModel, PreTrainedTokenizerBase
        The model and its tokenizer.
    defaults : dict
        Arguments of `StreamingChat` for conversations that have no others.
    attention_sink_size : int, optional
        S of every conversation, so that they fit one batch. The default is the model's, and at least what keeps the
        system prompt of the defaults for ever.
    cache_class : type
        The class of its caches.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        defaults: Mapping[str, Any],
        attention_sink_size: int | None,
        cache_class: type[AttentionSinkKVCache],
    ) -> None:
        self.model, self.tokenizer, self.defaults = model, tokenizer, dict(defaults)
        self._lock = threading.Lock()
        self._fingerprint = cache_class.fingerprint_of(model)  # its weights do not change while a pool has it
        self._chats: OrderedDict[str, tuple[StreamingChat, tuple[int, ...]]] = OrderedDict()
        chat, prefix = self._settings({})
        own = chat.cache.settings
        size = max(own.sink_size, len(prefix)) if attention_sink_size is None else attention_sink_size
        self._cache_class = cache_class
        self.sizes: SinkSettings = cache_class(model, size, own.window_size, own.cache_dtype).settings

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise what is wrong with these settings of a conversation, and warn of a prompt that it will forget."""
        _, prefix = self._settings(options)
        if len(prefix) > self.sizes.sink_size:
            logger.warning_once(
                f"a conversation begins with {len(prefix)} tokens, its system prompt among them, but the pool keeps "
                f"{self.sizes.sink_size} for ever; make the pool with attention_sink_size={len(prefix)}."
            )

    def new(self, options: Mapping[str, Any]) -> Talk:
        """Return a conversation that has not begun, with `options` in the place of defaults."""
        cache = self._cache_class(self.model, self.sizes.sink_size, self.sizes.window_size, self.sizes.cache_dtype)
        return self._talk(ChatStream(self.model, cache), options)

    def to_file(self, talk: Talk) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return a conversation as tensors by name and plain data."""
        stream = talk.left or talk.stream
        tensors, cache = stream.cache.snapshot(self._fingerprint)
        return tensors, saved_state(talk.chat, cache, stream)

    def from_file(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Talk:
        """Return the conversation of which `to_file` has told.

        Raises
        ------
        ValueError
            When it is not one of this model, tokenizer, S and W.
        """
        config = GenerationConfig()  # that of each turn counts
        found = restored(self.model, tensors, state, config, self._fingerprint, self._cache_class)
        theirs, own = found.cache.settings, self.sizes
        if theirs != own:
            raise ValueError(
                f"holds a stream of S={theirs.sink_size}, W={theirs.window_size} and attention_sink_cache_dtype="
                f"{theirs.cache_dtype!r}, but this pool has S={own.sink_size}, W={own.window_size} and "
                f"{own.cache_dtype!r}; make the pool with attention_sink_size={theirs.sink_size}, and the model with "
                "that window and dtype."
            )
        if len(found.rows or ()) > 1:
            raise ValueError(f"holds {len(found.rows or ())} conversations at once; load it with StreamingChat.load.")
        arguments = found.saved.arguments(GenerationConfig())
        talk = self._talk(ChatStream(self.model, found.cache), {name: arguments[name] for name in SETTINGS})
        found.put_into(talk.stream)
        found.check_template(talk.chat.template)
        return talk

    def differing(self, talk: Talk, options: Mapping[str, Any]) -> list[str]:
        """Return which of the settings `options` are not those of `talk`."""
        given, own = settings_of(self._settings(options)[0]), settings_of(talk.chat)
        return [name for name in options if given[name] != own[name]]

    def _talk(self, stream: ChatStream, options: Mapping[str, Any]) -> Talk:
        chat, prefix = self._settings(options)
        forgets = chat.thoughts == "forget"
        return Talk(
            chat, prefix, stream, TurnTaker(self.tokenizer, chat.template, stream, forgets, chat.keep_transcript)
        )

    def _settings(self, options: Mapping[str, Any]) -> tuple[StreamingChat, tuple[int, ...]]:
        """Return the settings that conversations with these options share, and their first tokens."""
        options = {**self.defaults, **options}
        key = _key_of(options)
        with self._lock:
            found = self._chats.get(key)
            if found is None:
                chat = StreamingChat(self.model, self.tokenizer, pin_system_prompt=False, **options)
                found = chat, tuple(chat.template.prefix())
                self._chats[_key_of(settings_of(chat))] = found  # what the files of such conversations ask for
            self._chats[key] = found
            self._chats.move_to_end(key)
            while len(self._chats) > KEPT:
                self._chats.popitem(last=False)
        return found


def _key_of(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=id)  # functions are tools, each one of its own
