"""`/v1/chat/completions`, asked by OpenAI's own client: the answers are those of a chat alone."""

import threading

import pytest

from support.server import history_of, user, wait_until_free

WORDS = ["w7 w8 w9", "w10", "w11 w12 w13 w14", "w15 w16", "w3 w3", "w21 w22 w23"]


def test_an_answer_is_that_of_a_chat_alone(serve, alone):
    with serve() as served:
        completion = served.ask([user("w7 w8")], max_tokens=9)
    answer = alone(max_new_tokens=9).ask("w7 w8")
    choice = completion.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", answer.text)
    assert choice.finish_reason == answer.finish_reason
    assert completion.model == "tiny" and completion.object == "chat.completion"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (answer.usage.tokens_read, answer.usage.tokens_written)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("tells_usage", [False, True])
def test_a_stream_has_the_same_text(serve, alone, tells_usage):
    answer = alone(max_new_tokens=9).ask("w7 w8")
    with serve() as served:
        chunks = list(
            served.ask([user("w7 w8")], max_tokens=9, stream=True, stream_options={"include_usage": tells_usage})
        )
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert told[0].delta.role == "assistant" and len(told) > 3
    assert "".join(choice.delta.content or "" for choice in told) == answer.text
    assert [choice.finish_reason for choice in told if choice.finish_reason] == [answer.finish_reason]
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.completion_tokens for usage in usages] == ([answer.usage.tokens_written] if tells_usage else [])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_sends_the_whole_history_goes_on_in_its_conversation(serve, alone, streams):
    chat, messages, read = alone(max_new_tokens=9), [], []
    with serve() as served:
        for text in WORDS * 3:
            messages.append(user(text))
            with served.tokens_read() as fed:
                reply = served.ask(messages, max_tokens=9, stream=streams)
                content = history_of(reply) if streams else reply.choices[0].message.content
            assert content == str(chat.ask(text))
            messages.append({"role": "assistant", "content": content})
            read += fed
        assert len(served.pool.sessions()) == 1
    assert max(read) <= max(read[:6]) + 1, "a turn feeds what is new, however long the history is"


def test_system_prompts_begin_conversations(serve, alone):
    with serve() as served:
        for system in ("w1", "w1 w2"):
            given = [{"role": "system", "content": system}, user("w7")]
            said = served.ask(given, max_tokens=9).choices[0].message.content
            assert said == str(alone(max_new_tokens=9, system=system, pin_system_prompt=False).ask("w7"))


def test_an_edited_history_is_read_anew(serve, alone):
    with serve() as served:
        first = served.ask([user("w7")], max_tokens=9).choices[0].message.content
        edited = [user("w7"), {"role": "assistant", "content": "w1 w2"}, user("w9")]
        told = [*edited[:1], {"role": "assistant", "content": first}, user("w9")]
        for messages in (edited, told, told):  # the second goes on, the third is asked once more
            said = served.ask(messages, max_tokens=9).choices[0].message.content
            if messages is edited:
                assert said == str(alone(max_new_tokens=9).ask(messages))
        assert len(served.pool.sessions()) == 3


def test_a_named_session_reads_what_is_new(serve, alone):
    chat, name = alone(max_new_tokens=9), {"X-Session-Id": "garden"}
    with serve() as served:
        for text in WORDS:
            said = served.ask([user(text)], max_tokens=9, extra_headers=name).choices[0].message.content
            assert said == str(chat.ask(text))
        listed = served.client().get("/sessions", cast_to=object)["data"]
        assert [each["id"] for each in listed] == ["garden"]
        assert served.client().delete("/sessions/garden", cast_to=object)["deleted"]
        assert served.client().get("/sessions", cast_to=object)["data"] == []


def test_conversations_go_on_after_the_server_has_ended(serve, alone, tmp_path):
    chat, messages = alone(max_new_tokens=9), []
    for text in WORDS[:4]:
        with serve(tmp_path) as served, served.tokens_read() as fed:
            messages.append(user(text))
            said = served.ask(messages, max_tokens=9).choices[0].message.content
            assert said == str(chat.ask(text))
            messages.append({"role": "assistant", "content": said})
        assert fed[0] < 20


def test_a_session_that_is_gone_is_read_anew(serve, alone, tmp_path):
    with serve(tmp_path) as served:
        said = served.ask([user("w7")], max_tokens=9).choices[0].message.content
        (session,) = served.pool.sessions()
        served.pool.delete(session.name)
        messages = [user("w7"), {"role": "assistant", "content": said}, user("w9")]
        again = served.ask(messages, max_tokens=9).choices[0].message.content
    assert again == str(alone(max_new_tokens=9).ask(messages))


def test_a_seed_makes_sampling_repeatable(serve):
    with serve() as served:
        options = {"temperature": 1.5, "top_p": 0.99, "max_tokens": 9}
        said = [served.ask([user("w7")], seed=seed, **options).choices[0].message.content for seed in (1, 1, 2, 3, 4)]
    assert said[0] == said[1] and len(set(said)) > 1


def test_a_client_that_goes_away_frees_its_row(serve, endless_model):
    with serve(rows=1, pool={"model": endless_model}) as served:
        stream = served.ask([user("w7")], max_tokens=8000, stream=True)
        next(iter(stream))
        stream.close()
        wait_until_free(served)


def test_many_clients_at_once_are_told_what_they_would_be_told_alone(serve, alone):
    said, texts = {}, [[f"w{client}", f"w{client + 1} w9", f"w{3 * client}"] for client in range(12)]

    def talk(served, number):
        messages = []
        for text in texts[number]:
            messages.append(user(text))
            content = served.ask(messages, max_tokens=9).choices[0].message.content
            messages.append({"role": "assistant", "content": content})
        said[number] = [message["content"] for message in messages[1::2]]

    with serve(rows=4) as served:
        threads = [threading.Thread(target=talk, args=(served, number)) for number in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, messages in enumerate(texts):
        chat = alone(max_new_tokens=9)
        assert said[number] == [str(chat.ask(text)) for text in messages]


def test_models_health_and_metrics(serve):
    with serve() as served:
        client = served.client()
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "attention_sinks"
        served.ask([user("w7")], max_tokens=2)
        assert client.with_options(base_url=served.url).get("/health", cast_to=object) == {"status": "ok"}
        numbers = client.with_options(base_url=served.url).get("/metrics", cast_to=str)
        assert 'attention_sinks_turns_total{outcome="finished"} 1.0' in numbers
