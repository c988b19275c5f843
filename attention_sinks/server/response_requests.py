"""What a client may ask for, as OpenAI's API names it, at `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..chat.messages import Message
from .requests import (
    MOST_MESSAGES,
    AnswerRequest,
    CalledFunction,
    Function,
    TextFormat,
    ToolCall,
    checked_turns,
    options_of,
)


class InputText(BaseModel):
    """A part of a message that is text, of the client or of an answer."""

    type: Literal["input_text", "output_text"]
    text: str


def text_of(content: str | list[InputText]) -> str:
    """Return the text of a message."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class InputMessage(BaseModel):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]

    @property
    def as_template_takes_it(self) -> Message:
        return {"role": "system" if self.role == "developer" else self.role, "content": text_of(self.content)}


class InputCall(BaseModel):
    """A call of a function in an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: Annotated[str, Field(min_length=1)]
    arguments: str

    @property
    def as_template_takes_it(self) -> Message:
        call = ToolCall(id=self.call_id, function=CalledFunction(name=self.name, arguments=self.arguments))
        return {"role": "assistant", "content": "", "tool_calls": [call.as_template_takes_it]}


class InputResult(BaseModel):
    """What a function has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]

    @property
    def as_template_takes_it(self) -> Message:
        return {"role": "tool", "content": text_of(self.output), "tool_call_id": self.call_id}


class InputThoughts(BaseModel):
    """Thoughts of an earlier answer. They are no part of what the model is told again."""

    type: Literal["reasoning"]


class ResponseTool(Function):
    """A function that an answer may call."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]

    @property
    def as_template_takes_it(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"strict", "type"}, exclude_none=True)}


class Reasoning(BaseModel):
    """How much the model is to think; the template is told."""

    effort: str | None = None


class TextOptions(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="forbid")
    format: TextFormat | None = None
    verbosity: str | None = None


Item = InputMessage | InputCall | InputResult | InputThoughts
Items = Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]


class ResponseRequest(AnswerRequest):
    """The body of a request for a response."""

    input: str | Items
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Literal[False] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens

    @property
    def conversation(self) -> tuple[dict[str, Any], list[Message]]:
        """The settings of the conversation, by the names of `StreamPool.conversation`, and its messages after them."""
        given = self.input
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else _joined(given)
        system = self.instructions
        if system is None and turns and turns[0]["role"] == "system":
            system, turns = turns[0]["content"], turns[1:]
        tools = [tool.as_template_takes_it for tool in self.tools or ()]
        effort = None if self.reasoning is None else self.reasoning.effort
        return options_of(self, system, tools, effort), checked_turns(turns, "input")


def _joined(items: list[Item]) -> list[Message]:
    """Return the messages, in which the calls of one answer are one message with its text."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, InputThoughts):
            continue
        message = item.as_template_takes_it
        if isinstance(item, InputCall) and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages
