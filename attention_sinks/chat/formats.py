"""How models write thoughts and calls of tools: one row for each format, found by what the chat template writes.

A row is part of a response template of Transformers (`tokenizer.response_template`), whose parser reads the answers. A
tokenizer that has a response template of its own is read by that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

THOUGHTS, TEXT, CALLS, MARKUP = "reasoning_content", "content", "tool_calls", "markup"
"""The parts of an answer, by the names that Transformers has for them. Markup is not shown."""

AFTER_CALLS = "after_calls"
"""Markup that closes a list of calls."""

THOUGHT_FIELDS = (THOUGHTS, "thinking", "reasoning")
"""Names that response templates give to thoughts."""


@dataclass(frozen=True)
class Tags:
    """What begins and ends the thoughts of an answer."""

    opening: str
    closing: str

    def field(self) -> dict[str, Any]:
        """Return them as a field. Thoughts come first, so that an answer may speak of the tags."""
        return {
            "open_pattern": rf"\A\s*{re.escape(self.opening)}\s*",
            "close_pattern": rf"\s*{re.escape(self.closing)}\s*",
            "content": "text",
        }


TAGS = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("<think:opensource>", "</think:opensource>"),
)


@dataclass(frozen=True)
class Calls:
    """How calls of tools are written: `marks` are what a template with this format writes, `field` is how to read it.

    The first row whose marks a template has is taken. `after` is what may follow a call; it is a field of its own,
    because a parser that reads piece by piece ends a call as soon as it can.
    """

    marks: tuple[str, ...]
    field: dict[str, Any]
    after: str | None = None

    def fields(self) -> dict[str, Any]:
        after = {} if self.after is None else {AFTER_CALLS: {"open_pattern": self.after, "close_pattern": ""}}
        return {CALLS: self.field, **after}


def _calls(opening: str, closing: str | None, content: str = "json", **how: Any) -> dict[str, Any]:
    """Return the field of one call after the other; what is between `opening` and `closing` is a function's call."""
    function = how.pop("function", "{content}")
    field: dict[str, Any] = {"open_pattern": opening, "content": content, "repeats": True, **how}
    if closing is not None:
        field["close_pattern"] = closing
    return {**field, "transform": {"type": "function", "function": function}}


NAMED = {"name": "{name}", "arguments": "{content}"}
"""The function of a call whose name stands before its arguments."""

PARAMETERS = {"name": "{content.name}", "arguments": "{content.parameters}"}


def _list(opening: str, closing: str | None, name: str = "{name}", arguments: str = "{arguments}") -> dict[str, Any]:
    """Return the field of a JSON list of calls."""
    field = _calls(opening, closing, function={"name": name, "arguments": arguments})
    return {**field, "repeats": False, "transform_each": True}


def _xml(opening: str, closing: str, pair: str) -> dict[str, Any]:
    """Return the field of a call whose arguments stand one by one in tags; the tools' schemas say their types."""
    return _calls(opening, closing, "xml-inline", content_args={"tag_pattern": pair}, function=NAMED)


JSON_ANSWER = _calls(
    r"\A\s*(?:<\|python_(?:tag|start|end)\|>\s*)*(?=\{\s*\"(?:name|type)\")", None, function=PARAMETERS
)
"""An answer that is JSON is a call."""

CALL_FORMATS = (
    Calls(
        ("<tool_call>", "<arg_key>"),  # GLM 4.5 and later
        _xml(
            r"\s*<tool_call>\s*(?P<name>[^<\s]+)",
            "</tool_call>",
            r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
        ),
    ),
    Calls(
        ("<function=", "<parameter="),  # Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS
        _xml(
            r"\s*(?:<(?:seed:)?tool_call>\s*)?<function=(?P<name>[^>\s]+)>",
            "</function>",
            r"<parameter=(?P<key>[^>]+)>\n?(?P<value>.*?)\n?</parameter>",
        ),
        after=r"(?<=</function>)\s*</(?:seed:)?tool_call>",
    ),
    Calls(
        ("<minimax:tool_call>",),
        _xml(
            r'\s*(?:<minimax:tool_call>\s*)?<invoke name="(?P<name>[^"]+)">',
            "</invoke>",
            r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>',
        ),
        after=r"(?<=</invoke>)\s*</minimax:tool_call>",
    ),
    Calls(
        ("DSML",),  # DeepSeek V3.2 and V4
        _xml(
            r'\s*(?:<｜DSML｜(?:function|tool)_calls>\s*)?<｜DSML｜invoke name="(?P<name>[^"]+)">',
            "</｜DSML｜invoke>",
            r'<｜DSML｜parameter name="(?P<key>[^"]+)"[^>]*>(?P<value>.*?)</｜DSML｜parameter>',
        ),
        after=r"(?<=</｜DSML｜invoke>)\s*</｜DSML｜(?:function|tool)_calls>",
    ),
    Calls(
        ("<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>"),  # DeepSeek V3, R1
        _calls(
            r"\s*(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>\S+)\s*```json\s*",
            r"\s*```\s*<｜tool▁call▁end｜>",
            function=NAMED,
        ),
        after=r"(?<=<｜tool▁call▁end｜>)\s*<｜tool▁calls▁end｜>",
    ),
    Calls(
        ("<｜tool▁call▁begin｜>",),  # DeepSeek V3.1
        _calls(
            r"\s*(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>(?P<name>\S+?)<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            function=NAMED,
        ),
        after=r"(?<=<｜tool▁call▁end｜>)\s*<｜tool▁calls▁end｜>",
    ),
    Calls(
        ("<|tool_call_argument_begin|>",),  # Kimi K2; the identifier is part of what the template writes of the result
        {
            **_calls(
                r"\s*(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*"
                r"(?P<id>(?:functions\.)?(?P<name>[^\s:]+):\d+)\s*<\|tool_call_argument_begin\|>",
                r"<\|tool_call_end\|>",
            ),
            "transform": {"type": "function", "id": "{id}", "function": NAMED},
        },
        after=r"(?<=<\|tool_call_end\|>)\s*<\|tool_calls_section_end\|>",
    ),
    Calls(
        ("<|tool_call>", "<tool_call|>"),  # Gemma 4
        _calls(
            r"\s*<\|tool_call>call:(?P<name>[^\{\s]+)(?=\{)",
            r"<tool_call\|>",
            content_args={"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            function=NAMED,
        ),
    ),
    Calls(
        ("<|tool_call_start|>",),  # LFM2
        {
            **_list(r"\s*<\|tool_call_start\|>\s*", r"\s*<\|tool_call_end\|>"),
            "content": "python-call-list",
        },
    ),
    Calls(("<TOOLCALL>",), _list(r"\s*<TOOLCALL>\s*", r"\s*</TOOLCALL>")),  # Nemotron 2
    Calls(
        ("<|START_ACTION|>",),  # Command R7B, Command A
        {
            **_list(r"\s*<\|START_ACTION\|>\s*", r"\s*<\|END_ACTION\|>"),
            "transform": {
                "type": "function",
                "id": "{tool_call_id}",
                "function": {"name": "{tool_name}", "arguments": "{parameters}"},
            },
        },
    ),
    Calls(
        ("[TOOL_CALLS]", "[ARGS]"),  # Mistral since v11
        _calls(
            r"\s*\[TOOL_CALLS\](?P<name>[^\[\{\s]+)(?:\[CALL_ID\](?P<id>[^\[\s]*))?\[ARGS\]",
            r"(?=\[TOOL_CALLS\])",
            function=NAMED,
        ),
    ),
    Calls(
        ("[TOOL_CALLS]",),  # Mistral before; where a call has no identifier, the empty one here stands in
        {
            **_list(r"\s*\[TOOL_CALLS\]\s*(?P<id>)", None),
            "transform": {
                "type": "function",
                "id": "{id}",
                "function": {"name": "{name}", "arguments": "{arguments}"},
            },
        },
    ),
    Calls(("<|tool_call|>", "<|/tool_call|>"), _list(r"\s*<\|tool_call\|>\s*", r"\s*<\|/tool_call\|>")),  # Phi-4-mini
    Calls(("<|tool_call|>",), _list(r"\s*<\|tool_call\|>\s*", None)),  # Granite 3
    Calls(("<tool_calls>", "<tool_call>"), _calls(r"\s*<tool_call>\s*", "</tool_call>")),
    Calls(("<tool_calls>",), _list(r"\s*<tool_calls>\s*", r"\s*</tool_calls>")),  # Jamba, Apriel
    Calls(("<tool_call>",), _calls(r"\s*<tool_call>\s*", "</tool_call>")),  # Hermes, Qwen2.5, Qwen3
    Calls(
        ("<function=", "</function>"),  # Functionary 3.1
        _calls(r"\s*<function=(?P<name>[^>\s]+)>", "</function>", function=NAMED),
    ),
    Calls(
        ("<|action_start|>",),  # InternLM2
        _calls(r"\s*<\|action_start\|>\s*<\|plugin\|>\s*", r"\s*<\|action_end\|>", function=PARAMETERS),
    ),
    Calls(("<|python_tag|>",), JSON_ANSWER),  # Llama 3.1 and 3.2
    Calls(('"parameters":', "<|start_header_id|>"), JSON_ANSWER),
    Calls(('"parameters":', "<|header_start|>"), JSON_ANSWER),  # Llama 4
)

CHANNELS = {
    THOUGHTS: {
        "open_pattern": r"(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>",
        "close_pattern": r"<\|end\|>|(?=<\|start\|>)",
        "content": "text",
        "repeats": True,
        "join": "\n",
    },
    CALLS: _calls(
        r"(?:<\|start\|>assistant)?(?:<\|channel\|>(?:commentary|analysis))?\s*to=functions\.(?P<name>[\w.-]+)\s*"
        r"(?:<\|channel\|>(?:commentary|analysis))?\s*(?:<\|constrain\|>\s*)?(?:json)?\s*<\|message\|>",
        r"<\|call\|>|<\|end\|>",
        function=NAMED,
    ),
    MARKUP: {
        "open_pattern": r"(?:<\|start\|>assistant)?(?:<\|channel\|>(?:final|commentary))\s*<\|message\|>|<\|end\|>"
        r"|(?:<\|(?:start|channel|constrain)\|>[^<]*)+\Z",  # an answer that was cut in a header
        "close_pattern": "",
    },
}
"""The answers of gpt-oss, in channels."""

RESPONSE = {"open_pattern": r"\s*<\|(?:START|END)_(?:RESPONSE|TEXT)\|>", "close_pattern": ""}
"""What Command R7B and its successors write around the text of an answer. For its tokenizer these are no special
tokens."""


def check_call(call: Any) -> dict[str, Any]:
    """Return a call of a tool; ValueError unless it names a function and its arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"no call of a function: {call!r:.80}")
    if not isinstance(function.get("arguments"), (dict, str)):
        raise ValueError(f"a call without arguments: {call!r:.80}")
    return call  # type: ignore[no-any-return]  # a dict, as its function shows


@dataclass(frozen=True)
class Format:
    """How the answers of one model are read.

    Attributes
    ----------
    response_template : dict or None
        As Transformers has it. None where an answer is all text.
    tags : Tags or None
        What begins and ends thoughts, where tags do.
    own : bool
        Whether the tokenizer brought it, which then knows where in a prompt an answer begins.
    """

    response_template: dict[str, Any] | None = None
    tags: Tags | None = None
    own: bool = False

    @property
    def has_thoughts(self) -> bool:
        fields = (self.response_template or {}).get("fields", {})
        return any(name in fields for name in THOUGHT_FIELDS)

    @property
    def has_calls(self) -> bool:
        return CALLS in (self.response_template or {}).get("fields", {})

    @cached_property
    def _patterns(self) -> str:
        return repr(self.response_template).replace("\\", "")

    def mentions(self, token: str) -> bool:
        """Return whether the parser looks for this token, so that it must be in the text that is parsed."""
        return token in self._patterns

    def is_in_arguments(self, token: str) -> bool:
        """Return whether this token may stand in the arguments of a call."""
        fields = (self.response_template or {}).get("fields", {})
        return token in repr(fields.get(CALLS, {}).get("content_args"))

    def breaks_off(self, raw: str) -> bool:
        """Return whether an answer ends in a call of which the parser would take the arguments that are there."""
        calls = {} if self.own else (self.response_template or {}).get("fields", {}).get(CALLS, {})
        if calls.get("content") != "xml-inline":  # others have arguments that cannot be parsed then
            return False
        starts = [found.end() for found in re.finditer(calls["open_pattern"], raw)]
        return bool(starts) and re.search(calls["close_pattern"], raw[starts[-1] :]) is None

    def without_calls(self) -> dict[str, Any] | None:
        """Return the response template that leaves calls of tools as text."""
        if self.response_template is None:
            return None
        parts = self.response_template["fields"].items()
        fields = {name: field for name, field in parts if name not in (CALLS, AFTER_CALLS)}
        return {**self.response_template, "fields": fields} if fields else None


def format_of(tokenizer: Any, template: str, with_tools: bool) -> Format:
    """Return how the answers of a model with this tokenizer and chat template are read."""
    if (own := getattr(tokenizer, "response_template", None)) is not None:
        return Format(own, own=True)
    if "<|channel|>analysis" in template:
        fields = {name: field for name, field in CHANNELS.items() if with_tools or name != CALLS}
        return Format(_response_template({**fields, TEXT: {"content": "text"}}))
    tags = next((tags for tags in TAGS if tags.closing in template), None)
    calls = next((row for row in CALL_FORMATS if all(mark in template for mark in row.marks)), None)
    fields = {THOUGHTS: tags.field()} if tags else {}
    if "<|START_RESPONSE|>" in template or "<|START_TEXT|>" in template:
        fields[MARKUP] = RESPONSE
    if with_tools and calls:
        fields |= calls.fields()
    return Format(_response_template({**fields, TEXT: {"content": "text"}}) if fields else None, tags)


def _response_template(fields: dict[str, Any]) -> dict[str, Any]:
    return {"defaults": {"role": "assistant"}, "start_anchor_pattern": r"\A", "fields": fields}
