"""What a turn of a chat adds to its stream: the difference that the model's chat template makes, never the history."""

from __future__ import annotations

from itertools import takewhile
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError

QUESTION, ANSWER = "question", "answer"
"""Stand-ins for what was said before: a template that leaves earlier text alone adds the same after any history."""


class ChatTemplate:
    """Tokens of the turns of an endless conversation, at a cost that does not depend on what came before.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Renders and tokenizes.
    system : str, optional
        System prompt. Default: what the template says when none is given.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's. Default: the tokenizer's own.

    Raises
    ------
    TypeError
        When `system` is no text.
    ValueError
        When there is no template, or it refuses the messages, or it rewrites earlier text when a turn is added.
    """

    def __init__(self, tokenizer: Any, system: str | None = None, chat_template: str | None = None) -> None:
        if not isinstance(system, (str, type(None))):
            raise TypeError(
                f"system={system!r:.80} must be a str, not {type(system).__name__}; pass the prompt's text."
            )
        self.tokenizer, self.system, self.chat_template = tokenizer, system, chat_template
        if chat_template is None and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"tokenizer={_name(tokenizer)} has no chat template; use a model that was trained to chat, or pass "
                "chat_template, a Jinja template as in tokenizer.apply_chat_template."
            )
        self._check_history()

    def first_turn(self, text: str) -> list[int]:
        """Tokens that begin a conversation with the message `text` and open its answer."""
        return self._tokenize(self._render(text))

    def next_turn(self, text: str) -> list[int]:
        """Tokens that close the answer before, whatever it said, ask `text` and open the next answer."""
        return self._after_answer(QUESTION, ANSWER, text)

    def prefix(self) -> list[int]:
        """Tokens before the words of the first message: system prompt and header, the same in every conversation."""
        alike = commonprefix([self._render(QUESTION), self._render(ANSWER)])
        pairs = zip(self._tokenize(alike), self.first_turn(QUESTION), strict=False)
        return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def _after_answer(self, *contents: str) -> list[int]:
        """Tokens that a conversation ending in `ANSWER`, text has from the end of that answer on."""
        before, whole = self._render(*contents[:-2]), self._render(*contents)
        said = whole[len(before) :].lstrip()
        if not (whole.startswith(before) and said.startswith(ANSWER)):
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} changes earlier text when a turn is added, so a stream "
                f"that has been read cannot go on (before: {before!r}; after: {whole!r}); pass chat_template, a Jinja "
                "template that leaves earlier messages as they were"
                + (", or leave system out." if self.system is not None else ".")
            )
        rest = said.removeprefix(ANSWER)
        head, tokens = self._tokenize(whole.removesuffix(rest)), self._tokenize(whole)
        return tokens[len(head) :] if tokens[: len(head)] == head else self._tokenize(rest)

    def _check_history(self) -> None:
        """A turn must add the same after a short history and after a longer one."""
        short = self.next_turn(QUESTION)
        if self._after_answer(QUESTION, ANSWER, QUESTION, ANSWER, QUESTION) != short:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} adds something else with every turn, so a turn cannot "
                "be rendered without its history; pass chat_template, a Jinja template that treats all turns alike."
            )

    def _render(self, *contents: str) -> str:
        """A conversation of these messages, user and assistant in turn, with the next answer opened."""
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} refuses a conversation"
                + (f" with system={self.system[:60]!r}" if self.system is not None else "")
                + f" ({error}); pass another chat_template"
                + (", or leave system out." if self.system is not None else ".")
            ) from error

    def _tokenize(self, text: str) -> list[int]:
        """The template has written special tokens already; the tokenizer adds none."""
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__
