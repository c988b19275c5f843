"""Render what one turn adds to the stream of a chat. The model's chat template decides; the history is not rendered."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from os.path import commonprefix
from typing import Any

from transformers.utils import get_json_schema, logging

from .encoding import TemplateEncoder
from .formats import format_of
from .messages import Message, turns_of

logger = logging.get_logger(__name__)

QUESTION, ANSWER, THOUGHT = "question", "answer", "thought"
"""Stand-ins for earlier messages. A template that can stream adds the same text after any others."""

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where templates look for the thoughts of an answer."""

CALL_ID = "call00000"
"""An identifier of a call for templates that need one, of the length that those of Mistral ask for."""

TOOL_ROLES = ("tool", "ipython", "observation", "function", "tool_response")
"""Roles of messages that follow a call of a tool."""

RESERVED = frozenset({"conversation", "messages", "tools", "chat_template", "tokenize", "add_generation_prompt"})
"""Keywords of `apply_chat_template` that a chat decides by itself."""


@dataclass(frozen=True)
class Said:
    """How the last answer of a conversation ended, which the next turn has to close.

    Attributes
    ----------
    tail : str
        The last characters of the answer, special tokens included, but without the token that ended it.
    ended : bool
        Whether the model ended the answer, which may also have been cut.
    tool_calls : tuple of dict
        The calls of tools in it.
    """

    tail: str = ""
    ended: bool = True
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What one turn adds to the stream of one conversation.

    Attributes
    ----------
    ids : list of int
        Its tokens.
    text : str
        The text that they are.
    opening : int
        How many of the tokens open the answer.
    opening_text : str
        The text that these are.
    """

    ids: list[int]
    text: str = field(repr=False)
    opening: int = 0
    opening_text: str = ""


class ChatTemplate:
    """Render the turns of an endless conversation as tokens, at a cost that does not depend on the history.

    What a turn adds is what the template writes after the last answer. At construction that is shown to be the same
    after histories of several kinds.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The tokenizer that renders and tokenizes.
    system : str, optional
        System prompt. By default the template decides, which may have a system prompt of its own.
    chat_template : str, optional
        Jinja template, or the name of one of the tokenizer's. The default is the tokenizer's own template.
    tools : list of dict or function, optional
        Tools, as `apply_chat_template` takes them.
    options : dict, optional
        Keywords for the template, such as `enable_thinking`.

    Raises
    ------
    TypeError
        When `system` is no text.
    ValueError
        When there is no template, when it refuses the messages or ignores the tools, or when a turn adds something that
        depends on the history.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(system, (str, type(None))):
            raise TypeError(
                f"system={system!r:.80} must be a str, not {type(system).__name__}; pass the prompt's text."
            )
        self.tokenizer, self.system, self.chat_template = tokenizer, system, chat_template
        self.tools, self.options = _schemas(tools), options or {}
        if chat_template is None and getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"tokenizer={_name(tokenizer)} has no chat template; use a model that was trained to chat, or pass "
                "chat_template, a Jinja template as in tokenizer.apply_chat_template."
            )
        self.source: str = self._source()
        self.encoder = TemplateEncoder(tokenizer, self.source)
        self.format = format_of(tokenizer, self.source, with_tools=self.tools is not None)
        self._warned: set[str] = set()
        self._parts = False  # whether the template wants the content of messages as a list of parts
        self.check_options(self.options)
        self._check_history()

    # ---- what a turn adds

    def first_turn(self, message: Any, options: dict[str, Any] | None = None) -> Prompt:
        """Return what begins a conversation with the messages of a turn and opens its answer."""
        messages, marks = self.encoder.marked(_of_one(message))
        whole, closed = (self._render(messages, opens, options, marks) for opens in (True, False))
        return self._prompt(whole, 0, closed, marks)

    def next_turn(self, message: Any, said: Said | None = None, options: dict[str, Any] | None = None) -> Prompt:
        """Return what closes the last answer, asks the messages of a turn and opens the next answer."""
        messages, marks = self.encoder.marked(_of_one(message))
        said = said or Said()
        before = self._before(messages, said)
        history = [*before.messages, *messages]
        whole, closed = (self._render(history, opens, options, marks) for opens in (True, False))
        start = before.end_in(whole)
        start += _overlap(whole[start:], said, self.encoder.control_tokens)
        return self._prompt(whole, start, closed, marks)

    def prefix(self) -> list[int]:
        """Return the tokens before the words of the first message, which are the same in every conversation.

        They are the system prompt and the header of the message.
        """
        alike = commonprefix([self._render(_user(text)) for text in (QUESTION, ANSWER)])
        pairs = zip(self.encoder.encode(alike), self.first_turn(QUESTION).ids, strict=False)
        return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def closing(self) -> str:
        """Return what the template writes between an answer and the next message's own header."""
        return commonprefix([self._suffix(_user(text), _user(QUESTION)) for text in (QUESTION, ANSWER)])

    def remembered(self, exchange: list[Message], first: bool, options: dict[str, Any] | None = None) -> list[int]:
        """Return the tokens of the answers in `exchange`, and of what is between them, as history has them.

        Parameters
        ----------
        exchange : list of dict
            The messages of a turn, the answer to it, and what else followed.
        first : bool
            Whether it begins the conversation.
        options : dict, optional
            Keywords for the template.

        Raises
        ------
        ValueError
            When the template does not write the messages before the answer as it did when they were new.
        """
        messages, marks = self.encoder.marked(exchange)
        past = [] if first else [*_user(QUESTION), _answer(ANSWER)]
        asked = list(takewhile(lambda message: message["role"] != "assistant", messages))
        before = self._render([*past, *asked], False, options, marks)
        whole = self._render_history([*past, *messages, *_user(QUESTION)], options, marks)
        after = self._suffix(_user(QUESTION), _user(QUESTION), options)
        answers = [_text_of(message).strip() for message in messages if message["role"] == "assistant"]
        if not (whole.startswith(before) and whole.endswith(after) and all(answer in whole for answer in answers)):
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} writes these messages otherwise once they are history, "
                "so the stream cannot be taken back to them; pass thoughts='keep'."
            )
        return self.encoder.after(whole.removesuffix(after), len(before), marks)

    def _render_history(self, messages: list[Message], options: dict[str, Any] | None, marks: str) -> str:
        """Render messages and the opening of an answer; of which templates refuse empty answers, those are cut out."""
        try:
            return self._render(messages, True, options, marks)
        except ValueError:
            words = _unused(messages)
            filled = [
                {**message, "content": words} if message["role"] == "assistant" and not _text_of(message) else message
                for message in messages
            ]
            if filled == messages:
                raise
            return self._render(filled, True, options, marks).replace(words, "")

    def _prompt(self, whole: str, start: int, closed: str, marks: str) -> Prompt:
        ids, text = self.encoder.after(whole, start, marks), whole[start:]
        for mark in marks:
            text = text.replace(mark, "")
        if not (whole.startswith(closed) and start <= len(closed)):
            return Prompt(ids, text)
        opening = self.encoder.encode(whole[len(closed) :])
        if ids[len(ids) - len(opening) :] != opening:  # it is written together with what stands before it
            opening = self.encoder.after(whole, len(closed), marks)
        return Prompt(ids, text, len(opening), whole[len(closed) :])

    # ---- after the last answer

    def _before(self, messages: list[Message], said: Said) -> _Before:
        """Return the history that stands in for the real one before the messages of a turn."""
        words = _unused([*messages, self.system, self.tools, list(said.tool_calls)])
        if said.tool_calls:
            try:
                return self._before_results(words, list(said.tool_calls))
            except ValueError:
                if messages[0]["role"] in TOOL_ROLES:
                    raise
        return _Before([*_user(QUESTION), _answer(words)], words)

    def _before_results(self, words: str, calls: list[dict[str, Any]]) -> _Before:
        """Return a history that ends with these calls of tools; the last argument of the last one is `words`.

        Some templates take arguments as JSON text.
        """
        last = {**calls[-1], "function": {**calls[-1]["function"], "arguments": {"argument": words}}}
        reason: ValueError
        for each in ([*calls[:-1], last], [_with_json(call) for call in (*calls[:-1], last)]):
            history = [*_user(QUESTION), {**_answer(""), "tool_calls": each}]
            try:
                ended = self._render(history, False)
            except ValueError as error:
                reason = error
                continue
            if words in ended:
                return self._after_calls(history, words, ended.rpartition(words)[2])
            reason = ValueError(
                f"message has the result of a tool, but the chat template of {_name(self.tokenizer)} writes no calls "
                "of tools; send the result as a user's message."
            )
        raise reason

    def _after_calls(self, history: list[Message], words: str, rest: str) -> _Before:
        """Return a history whose answer ends in a call; `rest` is what the template writes after `words` in it.

        The answer ends with what closes any answer, or with a control token that is no part of a call's arguments.
        """
        controls = self.encoder.control_tokens
        inside = [token for token in controls if token in rest and self.format.is_in_arguments(token)]
        begin = max((rest.rfind(token) + len(token) for token in inside), default=0)
        plain = self._render([*_user(QUESTION), _answer(ANSWER)], False).rpartition(ANSWER)[2]
        places = [rest.find(end, begin) for end in (plain, *controls) if end.strip() and end in rest[begin:]]
        if not places and not begin:
            raise ValueError(
                "message has the result of a tool, and where the call of the tool ends cannot be told from the chat "
                f"template of {_name(self.tokenizer)}; send the result as a user's message."
            )
        return _Before(history, words, rest[: min(places, default=begin)])

    def _suffix(
        self, messages: list[Message], history: list[Message], options: dict[str, Any] | None = None, **keys: Any
    ) -> str:
        """Return what the template writes after an answer to `history`, with `messages` as the next turn."""
        words = _unused([*messages, *history, self.system, self.tools])
        whole = self._render([*history, {**_answer(words), **keys}, *messages], True, options)
        if words not in whole:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} does not write answers as they are, so a stream cannot "
                f"go on after one (it writes {whole!r:.200}); pass chat_template, a Jinja template that does."
            )
        return whole.rpartition(words)[2]

    # ---- checks

    def _check_history(self) -> None:
        """Raise ValueError unless a turn adds the same after histories of all kinds."""
        asked, short = _user(QUESTION), self._usual_suffix()
        thoughts: dict[str, Any] = dict.fromkeys(THOUGHT_KEYS, THOUGHT)
        longer = [*asked, _answer(ANSWER), *_user(ANSWER), _answer(QUESTION), *asked]
        histories: list[tuple[list[Message], dict[str, Any]]] = [
            (longer, {}),
            ([*_user(" ".join([QUESTION] * 50)), _answer(ANSWER * 50), *asked], {}),
            ([*asked, {**_answer(ANSWER), **thoughts}, *asked], thoughts),
        ]
        if self.tools:
            self._check_tools()
            histories.append(([*asked, *self._use_of_a_tool(), _answer(ANSWER), *asked], {}))
        for history, keys in histories:
            if (other := self._suffix(asked, history, **keys)) != short:
                raise ValueError(
                    f"the chat template of {_name(self.tokenizer)} adds something else with every turn, so a turn "
                    f"cannot be rendered without its history (after a short one: {short!r:.200}; after another: "
                    f"{other!r:.200}); pass chat_template, a Jinja template that treats all turns alike"
                    + (", or leave system out." if self.system is not None else ".")
                )
        if QUESTION not in short:
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} does not write a message as it is (it writes "
                f"{short!r:.200}); pass chat_template, a Jinja template that does."
            )
        self._warn_of_repeats(short)

    def _usual_suffix(self) -> str:
        """Return what a turn adds; find out whether contents are texts or, where models see images, lists of parts."""
        asked = _user(QUESTION)
        try:
            return self._suffix(asked, asked)
        except ValueError as error:
            self._parts = True
            try:
                return self._suffix(asked, asked)
            except ValueError:
                self._parts = False
                raise error from error.__cause__

    def _warn_of_repeats(self, suffix: str) -> None:
        """Warn when a turn adds what should stand at the beginning alone."""
        tools = [json.dumps(tool.get("function", tool).get("name")) for tool in self.tools or ()]
        for what, texts in (("system prompt", [self.system] if self.system else []), ("tools", tools)):
            if any(text in suffix for text in texts):
                self._warn(
                    f"the chat template of {_name(self.tokenizer)} repeats the {what} with every turn, which takes "
                    "room in the window each time; pass chat_template, a Jinja template that writes it once."
                )

    def _use_of_a_tool(self) -> list[Message]:
        """Return an answer that calls the first tool, and the result, as the template takes them."""
        assert self.tools is not None
        name = self.tools[0].get("function", self.tools[0]).get("name", "tool")
        call = {"id": CALL_ID, "type": "function", "function": {"name": name, "arguments": {}}}
        result = {"role": "tool", "name": name, "tool_call_id": call["id"], "content": ANSWER}
        answers = [{**_answer(""), "tool_calls": [each]} for each in (call, _with_json(call))]
        try:
            self._render([*_user(QUESTION), answers[0], result])
        except ValueError:
            return [answers[1], result]
        return [answers[0], result]

    def _check_tools(self) -> None:
        """Raise ValueError unless the template writes the tools."""
        try:
            without = self._render(_user(QUESTION), options={"tools": None})
        except ValueError:
            return  # it cannot do without tools, so it does not ignore them
        if self._render(_user(QUESTION)) == without:
            raise ValueError(
                f"tools are given, but the chat template of {_name(self.tokenizer)} ignores them; describe them in "
                "the system prompt, or pass chat_template, a Jinja template that writes them."
            )

    @staticmethod
    def with_call_ids(messages: list[Message], said: Said | None) -> list[Message]:
        """Return the messages, with the identifiers of the calls of which they have the results, in their order."""
        numbers = iter([call["id"] for call in (said.tool_calls if said else ()) if "id" in call])
        return [
            {"tool_call_id": number, **message}
            if message["role"] in TOOL_ROLES and (number := next(numbers, None)) is not None
            else message
            for message in messages
        ]

    def check_roles(self, messages: list[Message], said: Said | None = None) -> None:
        """Raise ValueError when the template writes nothing for the role of a message.

        `said` is how the last answer ended, None before the first turn.
        """
        if {message["role"] for message in messages} <= {"user"}:
            return
        before = [] if said is None else self._before(messages, said).messages
        words = f"{_unused([*messages, self.system, self.tools])}x"
        probes = [{**message, "content": f"{words}{index}x"} for index, message in enumerate(messages)]
        whole = self._render([*before, *probes])
        for probe in probes:
            if probe["content"] not in whole:
                raise ValueError(
                    f"message has role={probe['role']!r:.40}, for which the chat template of {_name(self.tokenizer)} "
                    "writes nothing here; send it as role='user'."
                )

    def check_options(self, options: Any) -> None:
        """Raise when `options` cannot be keywords for the template, and warn of those that it does not read."""
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise TypeError(
                f"chat_template_kwargs={options!r:.80} must be a dict of keywords, such as {{'thinking': False}}."
            )
        if taken := RESERVED.intersection(options):
            raise ValueError(
                f"chat_template_kwargs has {sorted(taken)[0]!r}, which the chat decides itself; leave it out."
            )
        for name in options:
            if not re.search(rf"\b{re.escape(name)}\b", self.source):
                self._warn(
                    f"chat_template_kwargs has {name!r}, which the chat template of {_name(self.tokenizer)} does not "
                    "read; leave it out."
                )

    def check_still_read(self, options: dict[str, Any]) -> None:
        """Warn when `options` of a later turn would change what stands before it and has been read."""
        asked = _user(QUESTION)
        whole = [self._render(asked, True, each) for each in (None, options)]
        added = [self._suffix(asked, asked, each) for each in (None, options)]
        if whole[0] != whole[1] and added[0] == added[1]:
            self._warn(
                f"chat_template_kwargs={options!r:.80} changes only what the chat template writes at the beginning, "
                "which has been read; pass it when the chat is made."
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    # ---- rendering

    def _source(self) -> str:
        try:
            source: str = self.tokenizer.get_chat_template(self.chat_template, self.tools)
        except Exception as error:  # a tokenizer with templates by name, and none of this one
            raise ValueError(
                f"tokenizer={_name(self.tokenizer)} has no such chat template ({error!r:.200}); pass chat_template, "
                "the name of one of its templates or a Jinja template."
            ) from error
        return source

    def _render(
        self, messages: list[Message], opens: bool = True, options: dict[str, Any] | None = None, marks: str = ""
    ) -> str:
        """Render `messages` after the system prompt, and the opening of the next answer if it `opens` one."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        rendered: str
        try:
            rendered = self.tokenizer.apply_chat_template(
                [self._as_wanted(message) for message in (*first, *messages)],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=opens,
                **{"tools": self.tools, **self.options, **(options or {})},
            )
        except Exception as error:  # a template may do all that Python may: divide by zero, ask what is not there …
            raise ValueError(
                f"the chat template of {_name(self.tokenizer)} refuses a conversation"
                + (f" with system={self.system[:60]!r}" if self.system is not None else "")
                + f" ({error!r:.200}); pass another chat_template"
                + (", or leave system out." if self.system is not None else ".")
            ) from error
        return self.encoder.with_marks(rendered, marks)

    def _as_wanted(self, message: Message) -> Message:
        """Return the message with its content as the template takes it: as text, or as a list of parts."""
        content = message.get("content")
        if self._parts and isinstance(content, str):
            return {**message, "content": [{"type": "text", "text": content}]}
        if not self._parts and isinstance(content, list):
            return {**message, "content": _text_of(message)}
        return message


@dataclass(frozen=True)
class _Before:
    """A history that stands in for the real one: `words` are the last that its answer says, but for `rest`."""

    messages: list[Message]
    words: str
    rest: str = ""

    def end_in(self, whole: str) -> int:
        """Return where in `whole`, what the template has rendered, the answer ends."""
        start = whole.rindex(self.words) + len(self.words)
        if not whole.startswith(self.rest, start):
            raise ValueError(
                "message has the result of a tool, and the chat template writes the call otherwise once the result is "
                "there; send the result as a user's message."
            )
        return start + len(self.rest)


def _overlap(rest: str, said: Said, control_tokens: dict[str, bool]) -> int:
    """Return how many characters of `rest`, what follows an answer, the answer has ended with.

    Of an answer that was cut only special tokens count: its last words may be followed by the same words.
    """
    for size in range(min(len(rest), len(said.tail)), 0, -1):
        if said.tail.endswith(rest[:size]) and (said.ended or any(token in rest[:size] for token in control_tokens)):
            return size
    return 0


def _unused(texts: Any) -> str:
    """Return a word that is in none of `texts`."""
    there = json.dumps(texts, default=repr, ensure_ascii=False)
    return next(word for number in count() if (word := f"{ANSWER}{number}") not in there)


def _schemas(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Return tools as JSON schemas, of which a file can tell."""
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)) or not tools:
        raise TypeError(f"tools={tools!r:.80} must be a list of functions or JSON schemas, or None for none.")
    try:
        return [get_json_schema(tool) if callable(tool) else dict(tool) for tool in tools]
    except Exception as error:  # Transformers has several kinds of errors for docstrings
        raise ValueError(
            f"tools={tools!r:.80} has one that is no JSON schema, and no function with types and a docstring of which "
            f"Transformers makes one ({error!r:.200}); pass its schema."
        ) from error


def _with_json(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are JSON text, as some templates take them."""
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _of_one(message: Any) -> list[Message]:
    return turns_of(message)[0]


def _text_of(message: Message) -> str:
    """Return the content of a message as one text."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _name(tokenizer: Any) -> str:
    """Return a name of `tokenizer` for error messages."""
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__
