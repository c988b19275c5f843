"""The chat of `attention-sinks chat`: begun, or gone on with from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..architecture.setup import setup_of
from ..chat.chat import StreamingChat
from ..chat.messages import Thoughts
from ..inject import inject_attention_sinks
from ..settings import CacheDtype


@dataclass
class Wishes:
    """What the user has asked for; None where nothing was said.

    Parameters
    ----------
    system, thoughts, template_kwargs, sinks, window, cache_dtype
        What a chat is begun with and keeps. A chat from a file has its own.
    generation_config : GenerationConfig
        How answers are made.
    session : str or None
        The name of the chat.
    file : Path or None
        Where the chat of that name is kept.
    compile : bool
        Whether steps are compiled.
    """

    system: str | None
    thoughts: Thoughts | None
    template_kwargs: dict[str, Any] | None
    sinks: int | None
    window: int | None
    cache_dtype: CacheDtype | None
    generation_config: GenerationConfig
    session: str | None
    file: Path | None
    compile: bool


class Opener:
    """Opens chats with one model, all kept in the file of the session where there is one."""

    def __init__(self, model: Any, tokenizer: Any, wishes: Wishes) -> None:
        self.model, self.tokenizer, self.wishes = model, tokenizer, wishes

    @property
    def _always(self) -> dict[str, Any]:
        wishes = self.wishes
        return {
            "generation_config": wishes.generation_config,
            "autosave": wishes.file,
            "compile": wishes.compile,
        }

    def begin(self, system: str | None) -> StreamingChat:
        """Return a new chat."""
        return self._new(system, self.wishes.template_kwargs, self.wishes.thoughts or "keep")

    def begin_like(self, chat: StreamingChat, system: str | None) -> StreamingChat:
        """Return a new chat with the settings of `chat`, but for its system prompt and the sinks that it has taken."""
        settings, own = chat.cache.settings, setup_of(self.model).settings
        asked = settings.sink_size > len(chat.template.prefix())
        sinks = settings.sink_size if asked else own.sink_size
        inject_attention_sinks(self.model, sinks, settings.window_size, own.prefill, settings.cache_dtype)
        return self._new(system, chat.template.options, chat.thoughts)

    def _new(self, system: str | None, template_kwargs: dict[str, Any] | None, thoughts: Thoughts) -> StreamingChat:
        return StreamingChat(
            self.model,
            self.tokenizer,
            system=system,
            chat_template_kwargs=template_kwargs,
            thoughts=thoughts,
            **self._always,
        )

    def load(self, path: Path) -> StreamingChat:
        """Return the chat that a file holds."""
        return StreamingChat.load(path, self.model, self.tokenizer, **self._always)

    def open(self) -> StreamingChat:
        """Return the chat of the session, or else a new one.

        Raises
        ------
        ValueError
            When the chat of the session is another model's, or was begun with something else than the user asks for.
        OSError
            When the folder of the session cannot be made.
        """
        wishes = self.wishes
        if wishes.file is None:
            return self.begin(wishes.system)
        if not wishes.file.exists():
            wishes.file.parent.mkdir(parents=True, exist_ok=True)
            return self.begin(wishes.system)
        try:
            chat = self.load(wishes.file)
        except ValueError as error:
            raise ValueError(
                f"--session={wishes.session} cannot go on with this model: {error} Choose another --session for it."
            ) from error
        self._check_same(chat)
        return chat

    def _check_same(self, chat: StreamingChat) -> None:
        """Raise ValueError when the user asks for what a chat that goes on was not begun with."""
        wishes, settings, pinned = self.wishes, chat.cache.settings, len(chat.template.prefix())
        kept = {
            "system": (wishes.system, chat.template.system),
            "thoughts": (wishes.thoughts, chat.thoughts),
            "template-kwargs": (wishes.template_kwargs, chat.template.options),
            "sinks": (None if wishes.sinks is None else max(wishes.sinks, pinned), settings.sink_size),
            "window": (wishes.window, settings.window_size),
            "cache-dtype": (wishes.cache_dtype, settings.cache_dtype),
        }
        for name, (asked, has) in kept.items():
            if asked is not None and asked != has:
                raise ValueError(
                    f"--session={wishes.session} was begun with {name} {has!r:.60}, not {asked!r:.60}; leave --{name} "
                    "out, or choose another --session."
                )
