"""What a client may ask for, as OpenAI's API names it, at `/v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from transformers import GenerationConfig

from ..chat.messages import Message
from .errors import RequestError

UNUSED = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
"""Parameters of OpenAI's API that change no answer here. They may be given."""


MOST_MESSAGES = 1 << 14
"""A request has no more messages than these, or hashing them would keep others waiting."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Part):
    """A part of a message that is text; this server takes no others."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """The function that an answer has called, with its arguments as JSON."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool in an answer that the client has got before."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def as_template_takes_it(self) -> dict[str, Any]:
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except ValueError:
            arguments = self.function.arguments
        call: dict[str, Any] = {"type": "function", "function": {"name": self.function.name, "arguments": arguments}}
        return call if self.id is None else call | {"id": self.id}


class ChatMessage(BaseModel):
    """A message. What a client keeps of answers besides what a chat template reads is left out."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        content = self.content
        return "".join(part.text for part in content) if isinstance(content, list) else content or ""

    @property
    def as_template_takes_it(self) -> Message:
        """The message as `apply_chat_template` takes it."""
        message: Message = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_takes_it for call in self.tool_calls]
        return message


class Function(BaseModel):
    """A function that an answer may call, as JSON schema."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool | None = None


class Tool(_Part):
    """A tool that an answer may call."""

    type: Literal["function"]
    function: Function

    @property
    def as_template_takes_it(self) -> dict[str, Any]:
        return {"type": "function", "function": self.function.model_dump(exclude={"strict"}, exclude_none=True)}


class StreamOptions(_Part):
    """What a stream tells besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(_Part):
    """The form of the answer; there is text alone."""

    type: Literal["text"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[list[Stop], BeforeValidator(_as_list), Field(max_length=4)]
"""Texts that end an answer: one, or up to four."""


class AnswerRequest(_Part):
    """What both of OpenAI's APIs ask of an answer, by the same names.

    Attributes
    ----------
    repetition_penalty, top_k, min_p, chat_template_kwargs
        Not in OpenAI's API; as Transformers has them.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if name not in UNUSED} if isinstance(data, dict) else data

    @property
    def most(self) -> tuple[str, int | None]:
        """The name of the limit of new tokens, and the limit."""
        raise NotImplementedError

    @property
    def stops(self) -> list[str] | None:
        """What ends the answer."""
        return None

    def generation_config(self, most: int, usual: int) -> GenerationConfig:
        """Return how the answer is made: of at most `usual` new tokens, or what is asked for up to `most`.

        Raises
        ------
        RequestError
            When more tokens are asked for.
        """
        name, asked = self.most
        if asked is not None and asked > most:
            cure = f"{name}={asked} is more than this server makes; ask for at most {most}."
            raise RequestError(400, cure, "invalid_value", name)
        names = ("repetition_penalty",) if self.temperature == 0 else ("repetition_penalty", "top_p", "top_k", "min_p")
        config = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.temperature == 0:
            config["do_sample"] = False
        elif self.temperature is not None:
            config |= {"do_sample": True, "temperature": self.temperature}
        elif config.keys() - {"repetition_penalty"}:
            config["do_sample"] = True
        return GenerationConfig(max_new_tokens=asked or usual, stop_strings=self.stops, **config)


class ChatRequest(AnswerRequest):
    """The body of a request for a chat completion."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stops | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    reasoning_effort: str | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None

    @property
    def most(self) -> tuple[str, int | None]:
        return "max_completion_tokens", self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str] | None:
        return self.stop or None

    @property
    def conversation(self) -> tuple[dict[str, Any], list[Message]]:
        """The settings of the conversation, by the names of `StreamPool.conversation`, and its messages after them."""
        messages = [message.as_template_takes_it for message in self.messages]
        has_system = messages[0]["role"] == "system"
        system, turns = (messages[0]["content"], messages[1:]) if has_system else (None, messages)
        tools = [tool.as_template_takes_it for tool in self.tools or ()]
        return options_of(self, system, tools, self.reasoning_effort), checked_turns(turns, "messages")


def options_of(
    request: AnswerRequest, system: str | None, tools: list[dict[str, Any]], effort: str | None
) -> dict[str, Any]:
    """Return the settings of a conversation, by the names of `StreamPool.conversation`."""
    keywords = dict(request.chat_template_kwargs or {})
    if effort is not None:
        keywords.setdefault("reasoning_effort", effort)
    options = {
        "system": system,
        "tools": None if request.tool_choice == "none" else tools or None,
        "chat_template_kwargs": keywords or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def checked_turns(turns: list[Message], param: str) -> list[Message]:
    """Return the messages, the last of which must be one that is answered."""
    if not turns or turns[-1]["role"] == "assistant":
        cause = "The last message must be one that is answered, as of the user."
        raise RequestError(400, cause, "invalid_value", param)
    return turns
