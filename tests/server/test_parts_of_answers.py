"""Thoughts, calls of tools and stop strings, as OpenAI's client reads them."""

import json

import pytest

from attention_sinks import AutoModelForCausalLM, AutoTokenizer
from attention_sinks.server.visible import VisibleText
from support.scripted import save_scripted_model
from support.server import MODEL, history_of, user

CALL = '<tool_call> {"name": "current_time", "arguments": {"timezone": "Europe/Paris"}} </tool_call>'
ANSWERS = {
    "in Paris? <end> <start> assistant ": CALL,
    "12:00 <end> <start> assistant ": "It is noon.",
    "Think! <end> <start> assistant ": "<think> Hm, well. </think> Yes, and no.",
}
TIME = {
    "name": "current_time",
    "description": "Tell the time.",
    "parameters": {"type": "object", "properties": {"timezone": {"type": "string"}}, "required": ["timezone"]},
}
TOOLS = [{"type": "function", "function": TIME}]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    folder = save_scripted_model(tmp_path_factory.mktemp("scripted"), ANSWERS, by_bytes=True)
    model = AutoModelForCausalLM.from_pretrained(folder, attention_sink_window_size=1500)
    return {"model": model, "tokenizer": AutoTokenizer.from_pretrained(folder)}


def told(chunks):
    """The text, the thoughts, the calls and the reason of a stream."""
    choices = [chunk.choices[0] for chunk in chunks]
    thoughts = "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in choices)
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    return history_of(chunks), thoughts, calls, choices[-1].finish_reason


@pytest.mark.parametrize("streams", [False, True])
def test_tools_are_called_and_their_results_are_read(serve, scripted, streams):
    messages = [user("What is the time in Paris?")]
    with serve(pool=scripted) as served:
        reply = served.ask(messages, tools=TOOLS, stream=streams)
        if streams:
            text, _, (call,), reason = told(list(reply))
        else:
            message, reason = reply.choices[0].message, reply.choices[0].finish_reason
            text, (call,) = message.content, message.tool_calls
        assert (text or "", reason) == ("", "tool_calls")
        assert call.function.name == "current_time"
        assert json.loads(call.function.arguments) == {"timezone": "Europe/Paris"}
        called = {"name": call.function.name, "arguments": call.function.arguments}
        messages += [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call.id, "type": "function", "function": called}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "12:00"},
        ]
        with served.tokens_read() as fed:
            assert served.ask(messages, tools=TOOLS).choices[0].message.content == "It is noon."
        assert fed[0] < 80 and len(served.pool.sessions()) == 1, "the conversation goes on"


@pytest.mark.parametrize("streams", [False, True])
def test_thoughts_are_told_apart(serve, scripted, streams):
    with serve(pool=scripted) as served:
        reply = served.ask([user("Think!")], stream=streams)
        if streams:
            text, thoughts, _, _ = told(list(reply))
        else:
            text, thoughts = reply.choices[0].message.content, reply.choices[0].message.reasoning_content
    assert (text.strip(), thoughts.strip()) == ("Yes, and no.", "Hm, well.")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("stop", [", and", [" no", "never"], ["."]])
def test_a_stop_string_ends_the_answer_and_is_not_shown(serve, scripted, streams, stop):
    messages = [user("12:00")]
    ends = {", and": "It is noon.", "[' no', 'never']": "It is", "['.']": "It is noon"}
    with serve(pool=scripted) as served:
        reply = served.ask(messages, stop=stop, stream=streams)
        content = history_of(reply) if streams else reply.choices[0].message.content
        assert content == ends[str(stop)]
        messages += [{"role": "assistant", "content": content}, user("Think!")]
        assert served.ask(messages).choices[0].message.content.strip() == "Yes, and no."
        assert len(served.pool.sessions()) == 1


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_visible_text_holds_back_what_may_be_a_stop_string(width):
    text = "one STO two ST OP three STOP four"
    visible = VisibleText(["STOP", "P three S!"])
    given = [visible.more(text[at : at + width]) for at in range(0, len(text), width)]
    assert "".join(given) + visible.rest() == visible.text == "one STO two ST OP three "
    assert VisibleText([]).more("all") == "all"


def test_responses_call_functions_and_think(serve, scripted):
    tool = {"type": "function", "strict": False, **TIME}
    with serve(pool=scripted) as served:
        client = served.client()
        asked = {"model": MODEL, "tools": [tool], "temperature": 0}
        first = client.responses.create(input="What is the time in Paris?", **asked)
        (call,) = first.output
        assert (call.type, call.name) == ("function_call", "current_time")
        assert json.loads(call.arguments) == {"timezone": "Europe/Paris"}
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "12:00"}
        second = client.responses.create(input=[result], previous_response_id=first.id, **asked)
        assert second.output_text == "It is noon."
        items = [user("What is the time in Paris?"), *first.output, result]
        assert client.responses.create(input=items, **asked).output_text == "It is noon."
        for streams in (False, True):
            reply = client.responses.create(input="Think!", stream=streams, model=MODEL, temperature=0)
            response = list(reply)[-1].response if streams else reply
            thought, said = response.output
            items = [user("Think!"), thought, said, user("12:00")]
            assert client.responses.create(input=items, model=MODEL, temperature=0).output_text == "It is noon."
            assert (thought.content[0].text.strip(), response.output_text.strip()) == ("Hm, well.", "Yes, and no.")
        events = [e.type for e in client.responses.create(input="What is the time in Paris?", stream=True, **asked)]
        assert "response.function_call_arguments.done" in events and events[-1] == "response.completed"
