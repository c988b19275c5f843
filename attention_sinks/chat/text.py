"""Turn the tokens of one answer into text, in pieces of whole words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Prefixes of the Unicode names of letters in scripts without spaces between words, where each letter is a piece."""

LONGEST, KEPT = 64, 16
"""Of so many tokens without a new line, so many are kept: to decode them all with each token would take ever longer."""


class AnswerText:
    """Take tokens one by one and return text as soon as no later token can change it.

    A word is whole when a space follows it, because a tokenizer may join neighbouring tokens. The streamers of
    Transformers follow other rules in each release, so this class has its own.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that decodes the tokens.
    shows : callable, optional
        Says of a special token, by its text, whether it is part of the text. Default: none is.
    """

    def __init__(self, tokenizer: Any, shows: Callable[[str], bool] | None = None) -> None:
        self.tokenizer = tokenizer
        self._hidden = None if shows is None else _special_tokens_but(tokenizer, shows)
        self._tokens: list[int] = []  # of the current line, or its last ones, and the last one of the line before it
        self._returned = 0  # how many characters of their text have been returned

    def add(self, token: int | None, ended: bool) -> str:
        """Add `token`, if there is one, and return the text that is now ready; all of it when the answer `ended`."""
        if token is not None and (self._hidden is None or token not in self._hidden):
            self._tokens.append(token)
        text = self._decode()
        ready = len(text) if ended else _length_of_whole_words(text)
        tail = self._decode(KEPT) if len(self._tokens) > LONGEST else text
        if not text.endswith(tail) or tail.startswith("\ufffd"):  # a letter has been cut
            tail = text
        ready = max(ready, len(text) - len(tail))
        piece = text[self._returned : ready]
        self._returned = max(self._returned, ready)
        if tail is not text:
            self._tokens = self._tokens[-KEPT:]
            self._returned = max(self._returned - len(text) + len(tail), 0)
        if text.endswith("\n"):  # one token of this line stays, because it preserves the first space of the next one
            self._tokens = self._tokens[-1:]
            self._returned = len(self._decode())
        return piece

    def _decode(self, last: int = 0) -> str:
        text: str = self.tokenizer.decode(self._tokens[-last:], skip_special_tokens=self._hidden is None)
        return text


def _special_tokens_but(tokenizer: Any, shows: Callable[[str], bool]) -> set[int]:
    """Return the ids of the special tokens that are no part of the text."""
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    added = getattr(tokenizer, "added_tokens_decoder", {})  # has those that the tokenizer has no name for
    special |= {number: token.content for number, token in added.items() if token.special}
    return {number for number, token in special.items() if not shows(token)}


def _length_of_whole_words(text: str) -> int:
    if text.endswith("\n") or unicodedata.name(text[-1:] or " ", "").startswith(WITHOUT_SPACES):
        return len(text)
    return text.rfind(" ") + 1
