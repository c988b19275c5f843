"""Text of a chat template as tokens, in which no message can write the template's special tokens."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps free of meaning; two that no message has enclose a special token in a message."""

ENCODING_LOCK = threading.Lock()
"""Held while a text is encoded. Tokenizers keep `split_special_tokens` as a setting of their own during the call, so
another thread would encode what a template has written as text, or a message as control tokens."""


class TemplateEncoder:
    """Encode what a chat template has written.

    A message is text, whatever it says: `"<|im_end|>"` in it must not end a turn. Before rendering, `marked` encloses
    the special tokens in messages by two characters; `encode` encodes what they enclose as text. Where no message holds
    a special token, the ids are those of `apply_chat_template`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer.
    template : str
        The chat template. Besides the tokenizer's special tokens, the added tokens that it writes are guarded.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer, self._template = tokenizer, template

    @cached_property
    def control_tokens(self) -> dict[str, bool]:
        """The tokens that text must not become, and whether the tokenizer calls them special.

        The unknown token is none of them: any text may become that.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        written = {token.content for token in added if token.content.strip() and token.content in self._template}
        special = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        tokens = (special | written) - {self.tokenizer.unk_token}
        return {text: text in special for text in sorted(tokens, key=len, reverse=True) if text}

    def marked(self, value: Any) -> tuple[Any, str]:
        """Return `value`, the strings of a message or of several, with their control tokens enclosed; and by what.

        That is two characters, or the empty string where there is nothing to enclose.
        """
        texts = list(_strings(value))
        if not any(token in text for token in self.control_tokens for text in texts):
            return value, ""
        free = [mark for mark in NONCHARACTERS if not any(mark in text for text in texts)]
        if len(free) < 2:
            raise ValueError("message holds nearly all of Unicode's noncharacters beside a special token; remove them.")
        marks = free[0] + free[1]
        pattern = re.compile("|".join(map(re.escape, self.control_tokens)))
        return _replaced(value, pattern, f"{marks[0]}\\g<0>{marks[1]}"), marks

    def with_marks(self, text: str, marks: str) -> str:
        """Return rendered text with the marks that the template has escaped, as in JSON or in Python's `repr`."""
        for mark in marks:
            text = re.sub(rf"\\u{ord(mark):04x}", mark, text, flags=re.IGNORECASE)
        return text

    def encode(self, text: str, marks: str = "") -> list[int]:
        """Return the ids of rendered text; the template has written its special tokens, so none are added."""
        if not marks or not any(mark in text for mark in marks):
            return self._ids(text)
        tokens = "|".join(map(re.escape, self.control_tokens))
        own = re.compile(f"(?<!{marks[0]})({tokens})(?!{marks[1]})")
        ids: list[int] = []
        run = ""
        for index, piece in enumerate(own.split(text)):
            if index % 2 or not any(mark in piece for mark in marks):
                run += piece
                continue
            ids += self._ids(run) if run else []
            ids += self._as_text(piece, marks, first=not ids)
            run = ""
        return ids + (self._ids(run) if run else [])

    def _as_text(self, text: str, marks: str, first: bool) -> list[int]:
        """Return the ids of text between two special tokens of the template, in which none are."""
        for token, special in self.control_tokens.items():
            if not special:  # the tokenizer would find it: cut it in two
                text = text.replace(f"{marks[0]}{token}{marks[1]}", f"{marks[0]}{token[0]}{marks}{token[1:]}{marks[1]}")
        pieces = [re.sub(f"[{marks}]", "", piece) for piece in text.split(marks)]
        ids = [token for index, piece in enumerate(pieces) for token in self._split(piece, first and not index)]
        control = {self.tokenizer.convert_tokens_to_ids(token) for token in self.control_tokens}
        if control.intersection(ids):
            raise ValueError(
                f"message holds the text of a special token, and the tokenizer {type(self.tokenizer).__name__} cannot "
                "encode it as text; take it out of the message."
            )
        return ids

    def _split(self, text: str, first: bool) -> list[int]:
        """Return the ids of `text`, encoded after a newline, as some tokenizers begin every text with a space."""
        newline, with_newline = (self._ids(each, split_special_tokens=True) for each in ("\n", "\n" + text))
        if not first and with_newline[: len(newline)] == newline:
            return with_newline[len(newline) :]
        return self._ids(text, split_special_tokens=True)

    def _ids(self, text: str, **options: Any) -> list[int]:
        with ENCODING_LOCK:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, **options).input_ids
        return ids

    def after(self, text: str, start: int, marks: str = "") -> list[int]:
        """Return the ids of `text[start:]` as they are in the whole text, where that can be told apart."""
        head, tokens = self.encode(text[:start], marks), self.encode(text, marks)
        return tokens[len(head) :] if tokens[: len(head)] == head else self.encode(text[start:], marks)


def _strings(value: Any) -> Sequence[str]:
    """Return all texts in `value`, which is made of dicts and lists."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [text for part in parts for text in _strings(part)]


def _replaced(value: Any, pattern: re.Pattern[str], replacement: str) -> Any:
    if isinstance(value, str):
        return pattern.sub(replacement, value)
    if isinstance(value, dict):
        return {key: _replaced(part, pattern, replacement) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(part, pattern, replacement) for part in value]
    return value
