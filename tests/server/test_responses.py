"""`/v1/responses`, asked by OpenAI's own client."""

import openai
import pytest

from support.server import MODEL

WORDS = ["w7 w8 w9", "w10", "w11 w12 w13 w14", "w15 w16"]


def respond(served, given, **options):
    options = {"temperature": 0, "max_output_tokens": 9, "model": MODEL, **options}
    return served.client().responses.create(input=given, **options)


def test_a_response_is_the_answer_of_a_chat_alone(serve, alone):
    answer = alone(max_new_tokens=9, system="w1", pin_system_prompt=False).ask("w7 w8")
    with serve() as served:
        response = respond(served, "w7 w8", instructions="w1")
    assert response.output_text == answer.text
    assert response.status == {"stop": "completed", "length": "incomplete"}[answer.finish_reason]
    assert response.usage.output_tokens == answer.usage.tokens_written


def test_responses_go_on_from_the_previous_one(serve, alone):
    chat, previous, read = alone(max_new_tokens=9), None, []
    with serve() as served:
        for text in WORDS * 3:
            with served.tokens_read() as fed:
                response = respond(served, text, previous_response_id=previous)
            assert response.output_text == str(chat.ask(text))
            assert response.previous_response_id == previous
            previous = response.id
            read += fed
        assert len(served.pool.sessions()) == 1
    assert max(read) <= max(read[:4]) + 1


def test_a_history_as_input_goes_on_as_well(serve, alone):
    chat, items = alone(max_new_tokens=9), []
    with serve() as served:
        for text in WORDS:
            items.append({"role": "user", "content": [{"type": "input_text", "text": text}]})
            with served.tokens_read() as fed:
                response = respond(served, items)
            assert response.output_text == str(chat.ask(text))
            items.append({"role": "assistant", "content": response.output_text})
        assert fed[0] < 30


def test_the_events_of_a_stream_tell_the_response(serve, alone):
    answer = alone(max_new_tokens=9).ask("w7 w8")
    with serve() as served:
        events = list(respond(served, "w7 w8", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text == answer.text and len(deltas) > 2
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len({events[0].response.id, events[-1].response.id}) == 1


def test_a_response_goes_on_once(serve):
    with serve() as served:
        first = respond(served, "w7")
        respond(served, "w8", previous_response_id=first.id)
        for name in (first.id, "resp_unknown"):
            with pytest.raises(openai.NotFoundError, match="send all of the conversation"):
                respond(served, "w9", previous_response_id=name)


def test_responses_belong_to_a_key(serve):
    with serve(api_keys=["one", "two"]) as served:
        options = {"model": MODEL, "max_output_tokens": 2}
        first = served.client("one").responses.create(input="w7", **options)
        with pytest.raises(openai.NotFoundError):
            served.client("two").responses.create(input="w8", previous_response_id=first.id, **options)
        assert served.client("one").responses.create(input="w8", previous_response_id=first.id, **options)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"input": []}, 400),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 400),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, 400),
        ({"input": [{"role": "assistant", "content": "w1"}]}, 400),
        ({"input": "w7", "background": True}, 400),
        ({"input": "w7", "tools": [{"type": "web_search"}]}, 400),
        ({"input": "w7", "text": {"format": {"type": "json_object"}}}, 400),
        ({"input": "w7", "max_output_tokens": 10**6}, 400),
        ({"input": "w7", "model": "gpt-9"}, 404),
    ],
)
def test_bad_requests_are_refused(serve, given, status):
    with serve() as served, pytest.raises(openai.APIStatusError) as caught:
        respond(served, **{"given": given.pop("input"), **given})
    assert caught.value.status_code == status and caught.value.body["message"]
