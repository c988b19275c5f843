"""`StreamingChat`: conversations without end, in which only what is new is ever fed."""

from __future__ import annotations

import copy
import json
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.storage import read_file, write_file
from ..versions import CACHE
from .decoding import decode
from .interrupts import interrupts_held_back
from .template import ChatTemplate
from .text import Voice

KIND = "StreamingChat"
"""What a saved chat calls itself."""


class StreamingChat:
    """A conversation that never ends, or several at once, at constant memory and cost per token.

    A turn feeds what the model's chat template adds for it and nothing else; the past is in the cache alone. What the
    model has said stays in the stream as it was said.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A model with attention sinks injected.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    system : str, optional
        System prompt. Default: what the chat template says when none is given.
    generation_config : GenerationConfig, optional
        How answers are chosen, greedily or by sampling, and where they end; may be changed between turns. What it
        leaves open is as in the model's own. `max_new_tokens`, else `max_length`, else 1,024 limits every answer.
    pin_system_prompt : bool, default True
        Never forget the system prompt: all tokens before the words of the first message become sinks of this chat's
        cache, if they are more than the model's S. The window stays the model's W.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's, for a tokenizer without one or with one that rewrites
        earlier messages. Default: the tokenizer's own.

    Attributes
    ----------
    cache : AttentionSinkKVCache
        The streams of the conversations.

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
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        generation_config: GenerationConfig | None = None,
        pin_system_prompt: bool = True,
        chat_template: str | None = None,
    ) -> None:
        if not model.can_generate():
            raise ValueError(
                f"model={type(model).__name__} cannot generate; use a model loaded with AutoModelForCausalLM."
            )
        self.model, self.tokenizer = model, tokenizer
        self.template = ChatTemplate(tokenizer, system, chat_template)
        self.generation_config = copy.deepcopy(generation_config or model.generation_config)
        self.cache = self.make_cache(len(self.template.prefix()) if pin_system_prompt else 0)
        self._unfed: list[list[int]] | None = None  # by row, said but not fed yet; None before the first turn
        self._turn: weakref.ref[Iterator] | None = None

    def make_cache(self, sink_size: int) -> Cache:
        """The cache of this chat: the model's sizes, with at least `sink_size` sinks."""
        settings = setup_of(self.model).settings
        return AttentionSinkKVCache(self.model, max(sink_size, settings.sink_size), settings.window_size)

    def send(self, text: str | Sequence[str]) -> Iterator[str] | Iterator[list[str]]:
        """Say something and read the answer while it is made.

        Nothing is fed before the first piece is asked for. Closing the iterator, leaving its loop, Ctrl-C or sending
        the next message stop the answer: what has been said until then stays said, and the next turn closes it.

        Parameters
        ----------
        text : str or list of str
            A message of any length; a list has one for each of several conversations, the same number in every turn.

        Returns
        -------
        iterator of str, or of list of str
            Pieces of the answer, mostly a word each. For several conversations lists with a piece of each, which is
            empty where there is none now or the answer has ended.

        Raises
        ------
        TypeError, ValueError
            For anything but text, another number of conversations, or, when the first piece is asked for, a generation
            config that cannot stream. After these, as after any error while the message is read, the chat is as it was.
        """
        texts = self._checked(text)
        self.stop()
        turn = self._take_turn(texts, alone=isinstance(text, str))
        self._turn = weakref.ref(turn)
        return turn

    def stop(self) -> None:
        """Stop the answer being made, if there is one; the chat can go on."""
        turn = self._turn and self._turn()
        if turn is not None:
            turn.close()

    def reset(self) -> None:
        """Forget the conversations; the next message begins new ones, of any number."""
        self.stop()
        self.cache.reset()
        self._unfed = None

    def _checked(self, text: str | Sequence[str]) -> list[str]:
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

    def save(self, path: str | os.PathLike) -> None:
        """Write the conversations to one safetensors file, also in the middle of an answer; `load` goes on from there.

        The file holds the cache, the tokens that are not in it yet, system prompt, chat template and generation config.
        It replaces what is at `path` once it is complete.
        """
        if not isinstance(self.cache, AttentionSinkKVCache):
            raise NotImplementedError(f"a chat in a {type(self.cache).__name__} cannot be saved; use a StreamingChat.")
        tensors, cache = self.cache.snapshot()
        state = {
            "kind": KIND,
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
        cls, path: str | os.PathLike, model: Any, tokenizer: Any, *, generation_config: GenerationConfig | None = None
    ) -> StreamingChat:
        """The chat that was saved to `path`, for the same model and tokenizer, also when loaded anew.

        `generation_config` takes the place of the one that was saved.

        Raises
        ------
        OSError
            When there is no such file.
        ValueError
            When the file is truncated, altered or something else, or its chat is that of another model or tokenizer.
        """
        tensors, state = read_file(path)
        if state.get("kind") != KIND:
            raise ValueError(f"path={str(path)!r} holds a {state.get('kind')}, not a {KIND}; use load() of that class.")
        if generation_config is None:
            generation_config = GenerationConfig.from_dict(state["generation_config"])
        options = {"system": state["system"], "chat_template": state["chat_template"]}
        chat = cls(model, tokenizer, generation_config=generation_config, **options)
        if chat.template.next_turn("") != state["turn"]:
            raise ValueError(
                f"path={str(path)!r} holds a chat with another tokenizer or chat template; use those it was saved with."
            )
        try:
            chat.cache = AttentionSinkKVCache.from_snapshot(model, tensors, state["cache"])
        except ValueError as error:
            raise ValueError(f"{error} (path={str(path)!r})") from error
        chat._unfed = state["unfed"]
        return chat

    # ---- one turn

    def _take_turn(self, texts: list[str], alone: bool) -> Iterator[str] | Iterator[list[str]]:
        """Pieces of the answers as lists or, for a conversation `alone`, one by one."""
        voices = [Voice(self.tokenizer) for _ in texts]
        steps = decode(self.model, self.tokenizer, self._new_tokens(texts), self.generation_config, self._feed)
        while (step := self._next(steps)) is not None:
            pieces = [voice.say(token, ended) for voice, token, ended in zip(voices, *step, strict=True)]
            if any(pieces):
                yield pieces[0] if alone else pieces

    def _new_tokens(self, texts: list[str]) -> list[list[int]]:
        """What the model has not read yet: what it said last, and what the template adds for this turn."""
        if self._unfed is None:
            return [self.template.first_turn(text) for text in texts]
        return [unfed + self.template.next_turn(text) for unfed, text in zip(self._unfed, texts, strict=True)]

    def _next(self, steps: Iterator) -> tuple | None:
        """One step, whole: Ctrl-C does not separate what is said from what is known to have been said."""
        with interrupts_held_back():
            step = next(steps, None)
            for unfed, token in zip(self._unfed, step[0] if step else (), strict=False):
                unfed += [token] if token is not None else []
        return step

    def _feed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **arguments: Any) -> torch.Tensor:
        """Feed the columns [batch, n] that the mask leaves; a row that fed some has nothing unfed."""
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **{CACHE: self.cache}, **arguments
        )
        fed = [True] * len(input_ids) if attention_mask is None else attention_mask.any(dim=1).tolist()
        before = self._unfed or [[]] * len(fed)
        self._unfed = [[] if row_fed else unfed for row_fed, unfed in zip(fed, before, strict=True)]
        return outputs.logits
