"""The tokens of one answer as text, in pieces of whole words."""

from __future__ import annotations

import unicodedata
from typing import Any

WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How the Unicode names of letters begin in scripts that put no spaces between words: each letter is a piece."""


class Voice:
    """Takes tokens one by one and gives out text as soon as no later token can change it.

    The rule is our own, because the streamers of Transformers keep other rules in each release. A word is whole when a
    space follows it, since a tokenizer may join what it decodes next to it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._tokens: list[int] = []  # of the line so far, and the one before it
        self._given = 0  # characters of their text that have been given out

    def say(self, token: int | None, ended: bool) -> str:
        """The text that is ready after `token`, and all of it when the answer has `ended`."""
        if token is not None:
            self._tokens.append(token)
        text = self._decode()
        ready = len(text) if ended else _length_of_whole_words(text)
        piece, self._given = text[self._given : ready], max(self._given, ready)
        if text.endswith("\n"):  # the next line is decoded beside one token of this one, which keeps its first space
            self._tokens = self._tokens[-1:]
            self._given = len(self._decode())
        return piece

    def _decode(self) -> str:
        return self.tokenizer.decode(self._tokens, skip_special_tokens=True)


def _length_of_whole_words(text: str) -> int:
    if text.endswith("\n") or unicodedata.name(text[-1:] or " ", "").startswith(WITHOUT_SPACES):
        return len(text)
    return text.rfind(" ") + 1
