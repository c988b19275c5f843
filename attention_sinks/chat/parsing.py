"""Tell the parts of an answer apart while it is made: thoughts, text and calls of tools."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from .answer import Answer, FinishReason, Piece, Usage
from .formats import CALLS, TEXT, THOUGHT_FIELDS, Format, check_call
from .template import Prompt
from .text import AnswerText

logger = logging.get_logger(__name__)


class AnswerParser:
    """Take the tokens of an answer one by one and return pieces that know what they are.

    The parser of Transformers reads them. What it cannot parse, such as a call of a tool that is no JSON, is text:
    every word of an answer is in one of its parts.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that decodes the tokens.
    form : Format
        How answers are written.
    answer : Answer
        What is known of the answer, which grows.
    prompt : Prompt
        What the turn adds to the stream. Its end may open thoughts.
    tools : list of dict, optional
        JSON schemas of the tools, which give arguments their types.
    """

    def __init__(
        self,
        tokenizer: Any,
        form: Format,
        answer: Answer,
        prompt: Prompt,
        tools: list[dict[str, Any]] | None = None,
    ) -> None:
        self.answer, self._read = answer, len(prompt.ids)
        self._tokenizer, self._form, self._tools = tokenizer, form, tools
        self._tokens: list[int] = []
        self._prompt = prompt.text if form.own else _opened_thought(prompt.opening_text, form)
        self._begin()

    def _begin(self) -> None:
        self._text = AnswerText(self._tokenizer, self._form.mentions if self._form.response_template else None)
        self._parser: Any = self._new_parser(self._form.response_template)
        self._raw = ""
        self._is_whole = True  # no exception has come between a token and what follows from it

    def say(self, token: int | None, reason: FinishReason | None, cached: int, seen: int) -> list[Piece]:
        """Add a token to the answer, if there is one, and return the pieces that are now ready.

        Parameters
        ----------
        token : int, optional
            It was said.
        reason : "stop", "length" or "interrupted", optional
            Why the answer has ended with it. All pieces are ready then.
        cached, seen : int
            Tokens in the cache, and tokens of the conversation.
        """
        self._is_whole = False
        pieces = self._add(token, reason is not None)
        self._tokens += [] if token is None else [token]
        self.answer.usage = Usage(self._read, len(self._tokens), cached, seen)
        self.answer.begun, self.answer.finish_reason, self._is_whole = True, reason, True
        return pieces

    def go_back(self, count: int) -> None:
        """Make the answer that of its first `count` tokens, if an exception has left it at another place."""
        if self._is_whole and len(self._tokens) == count:
            return
        tokens, self._tokens = self._tokens[:count], []
        self.answer.text = self.answer.thoughts = ""
        self.answer.tool_calls = []
        self._begin()
        for token in tokens:
            self.say(token, None, self.answer.usage.tokens_cached, self.answer.usage.tokens_seen)

    def _add(self, token: int | None, ended: bool) -> list[Piece]:
        text = self._text.add(token, ended)
        if self._parser is None:
            return [self._give(text, False)] if text else []
        self._raw += text
        try:
            return self._pieces(self._events(text, ended))
        except Exception as error:  # a parser may raise anything about what a model writes
            return self._go_on_without_calls(ended, error)

    def _events(self, text: str, ended: bool) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self._parser.feed(text)
        if ended:
            message, last = self._parser.finalize()
            if CALLS in message and self._form.breaks_off(self._raw):
                raise ValueError("it breaks off")
            self.answer.tool_calls = _calls_of(message)
            events += last
        return events

    def _pieces(self, events: list[dict[str, Any]]) -> list[Piece]:
        pieces = []
        for event in events:
            field, text = event.get("field"), event.get("text")
            if event["type"] == "region_open" and field in THOUGHT_FIELDS and self.answer.thoughts:
                pieces.append(self._piece("\n", True))  # gpt-oss may think several times
            if event["type"] != "region_chunk" or not text or event.get("dirty"):
                continue
            if field in THOUGHT_FIELDS or field == TEXT:
                pieces.append(self._piece(text, field in THOUGHT_FIELDS))
        return [piece for piece in pieces if piece]

    def _piece(self, text: str, is_thought: bool) -> Piece:
        """Give `text` without the white space before the first word of its kind, if there were other words before."""
        is_first = not (self.answer.thoughts if is_thought else self.answer.text)
        if is_first and (is_thought or self.answer.thoughts or self._prompt):
            text = text.lstrip()
        return self._give(text, is_thought)

    def _give(self, text: str, is_thought: bool) -> Piece:
        """Add `text` to the answer and return it as a piece."""
        if is_thought:
            self.answer.thoughts += text
        else:
            self.answer.text += text
        return Piece(text, is_thought)

    def _go_on_without_calls(self, ended: bool, error: Exception) -> list[Piece]:
        """Read the answer anew, with its calls of tools as text, and return what has not been returned."""
        logger.warning(f"an answer has a call of a tool that cannot be parsed ({error!r:.200}); it is given as text.")
        thoughts, text = self.answer.thoughts, self.answer.text
        self.answer.thoughts = self.answer.text = ""
        self._parser, self.answer.tool_calls = self._new_parser(self._form.without_calls()), []
        try:
            if self._parser is None:
                self._give(self._raw, False)
            else:
                self._pieces(self._events(self._raw, ended))
        except Exception:  # the tokenizer's own parser, which has other parts as well
            self._parser, self.answer.thoughts, self.answer.text = None, "", self._raw
        now = self.answer.thoughts, self.answer.text
        self.answer.thoughts, self.answer.text = thoughts, text
        new = [(now[0][len(thoughts) :], True), (now[1][len(text) :], False)]
        return [self._give(words, is_thought) for words, is_thought in new if words]

    def _new_parser(self, response_template: dict[str, Any] | None) -> Any:
        """Return a parser that has read the prompt."""
        if response_template is None:
            return None
        try:
            return self._tokenizer.get_response_parser(response_template, prefix=self._prompt, tools=self._tools)
        except ValueError as error:  # this release does not know a content of a later one
            if CALLS not in response_template["fields"]:
                raise
            logger.warning_once(
                f"this release of Transformers cannot parse the model's calls of tools ({error!r:.200})."
            )
            return self._new_parser(self._form.without_calls())


def _opened_thought(prompt: str, form: Format) -> str:
    """Return what the end of a prompt has written of the thoughts of the answer."""
    if form.tags is None:
        return ""
    start = prompt.rfind(form.tags.opening)
    return prompt[start:] if start >= 0 else ""


def _calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of tools in a parsed message; ValueError unless each names a function and its arguments.

    Each has an identifier, of the length that templates of Mistral ask for where the model gave none.
    """
    found = message.get(CALLS) or []
    calls = map(check_call, found if isinstance(found, list) else [found])
    return [{**call, "id": call.get("id") or f"call{index:05d}"} for index, call in enumerate(calls)]
