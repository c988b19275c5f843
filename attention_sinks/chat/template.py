"""Render what one turn adds to the stream of a chat. The model's chat template decides; the history is not rendered."""

from __future__ import annotations

from itertools import takewhile
from os.path import commonprefix
from typing import Any

QUESTION, ANSWER = "question", "answer"
"""Stand-ins for earlier messages. A template that leaves earlier text alone adds the same tokens after any others."""


class ChatTemplate:
    """Render the turns of an endless conversation as tokens, at a cost that does not depend on the history.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that renders and tokenizes.
    system : str, optional
        System prompt. By default the template decides, which may have a system prompt of its own.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's. The default is the tokenizer's own template.

    Raises
    ------
    TypeError
        When `system` is no text.
    ValueError
        When there is no template, when it refuses the messages, or when it rewrites earlier text with a new turn.
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
        """Return the tokens that begin a conversation with the message `text` and open its answer."""
        return self._tokenize(self._render(text))

    def next_turn(self, text: str) -> list[int]:
        """Return the tokens that close the last answer, whatever it said, ask `text` and open the next answer."""
        return self._after_answer(QUESTION, ANSWER, text)

    def prefix(self) -> list[int]:
        """Return the tokens before the words of the first message, which are the same in every conversation.

        They are the system prompt and the header of the message.
        """
        alike = commonprefix([self._render(QUESTION), self._render(ANSWER)])
        pairs = zip(self._tokenize(alike), self.first_turn(QUESTION), strict=False)
        return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def _after_answer(self, *contents: str) -> list[int]:
        """Return the tokens that follow the answer in a conversation that ends with `ANSWER` and one more message."""
        before, whole = self._render(*contents[:-2]), self._render(*contents)
        said = whole[len(before) :].lstrip()
        if not (whole.startswith(before) and said.startswith(ANSWER)):
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} changes earlier text when a turn is added, so a stream "
                f"that has been read cannot go on (before: {before!r:.200}; after: {whole!r:.200}); pass "
                "chat_template, a Jinja template that leaves earlier messages as they were"
                + (", or leave system out." if self.system is not None else ".")
            )
        rest = said.removeprefix(ANSWER)
        head, tokens = self._tokenize(whole.removesuffix(rest)), self._tokenize(whole)
        return tokens[len(head) :] if tokens[: len(head)] == head else self._tokenize(rest)

    def _check_history(self) -> None:
        """Raise ValueError when a turn adds other tokens after a longer history than after a short one."""
        short = self.next_turn(QUESTION)
        if self._after_answer(QUESTION, ANSWER, QUESTION, ANSWER, QUESTION) != short:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} adds something else with every turn, so a turn cannot "
                "be rendered without its history; pass chat_template, a Jinja template that treats all turns alike."
            )

    def _render(self, *contents: str) -> str:
        """Render `contents`, messages of user and assistant in turn, and the opening of the next answer."""
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may do all that Python may: divide by zero, ask what is not there …
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} refuses a conversation"
                + (f" with system={self.system[:60]!r}" if self.system is not None else "")
                + f" ({error!r:.200}); pass another chat_template"
                + (", or leave system out." if self.system is not None else ".")
            ) from error
        return rendered

    def _tokenize(self, text: str) -> list[int]:
        """Tokenize rendered text; the tokenizer adds no special tokens, because the template has written them."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _name(tokenizer: Any) -> str:
    """Return a name of `tokenizer` for error messages."""
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__
