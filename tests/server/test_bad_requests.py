"""What a client cannot have is refused with cause and cure, and nothing is lost or told."""

import http.client
import json
import socket

import openai
import pytest
from pydantic import ValidationError

from attention_sinks.server.settings import ServerSettings, settings_from
from support.server import user, wait_until_free

GOOD = {"model": "tiny", "messages": [user("w7")], "max_tokens": 4, "temperature": 0}

BAD = {  # what the body is changed to, with the status and a word of the message
    "no JSON": ("{", 400, "JSON"),
    "a list": ("[]", 400, "object"),
    "empty": ("", 400, "JSON"),
    "half a character": ('{"model": "\\ud800"}', 400, ""),
    "no model": ({"model": None}, 400, "model"),
    "another model": ({"model": "gpt-9"}, 404, "tiny"),
    "no messages": ({"messages": []}, 400, "messages"),
    "messages of another type": ({"messages": "hello"}, 400, "messages"),
    "an unknown role": ({"messages": [{"role": "king", "content": "w1"}]}, 400, "role"),
    "an answer comes last": ({"messages": [user("w1"), {"role": "assistant", "content": "w2"}]}, 400, "last message"),
    "a system prompt alone": ({"messages": [{"role": "system", "content": "w2"}]}, 400, "last message"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "text",
    ),
    "tools that the template has none for": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        400,
        "tools",
    ),
    "a tool without a name": ({"tools": [{"type": "function", "function": {}}]}, 400, "name"),
    "a tool that must be called": ({"tool_choice": "required"}, 400, "tool_choice"),
    "a hot temperature": ({"temperature": 3}, 400, "temperature"),
    "a temperature of another type": ({"temperature": "hot"}, 400, "temperature"),
    "many messages": ({"messages": [user("w1")] * 20_000}, 400, "at most 16384"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "too many tokens": ({"max_tokens": 10**6}, 400, "at most 8192"),
    "several answers": ({"n": 2}, 400, "n:"),
    "logprobs": ({"logprobs": True}, 400, "logprobs"),
    "a penalty": ({"presence_penalty": 1.0}, 400, "presence_penalty"),
    "JSON answers": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "an empty stop": ({"stop": ""}, 400, "stop"),
    "many stops": ({"stop": ["a"] * 5}, 400, "stop"),
    "a typing error": ({"max_token": 3}, 400, "max_token is no parameter"),
    "a chat template": ({"chat_template": "{{ x }}"}, 400, "chat_template is no parameter"),
    "a hidden chat template": ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, 400, "the chat decides itself"),
}


def post(served, body, headers=None, path="/v1/chat/completions", method="POST"):
    """The status and the error that are answered."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    content = body if isinstance(body, str) else json.dumps(body)
    connection.request(method, path, content.encode(), {"Content-Type": "application/json", **(headers or {})})
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text)


def test_bad_requests_are_refused(serve):
    wrong = {}
    with serve() as served:
        for name, (change, status, word) in BAD.items():
            got, told = post(served, change if isinstance(change, str) else {**GOOD, **change})
            error = told.get("error", {})
            if got != status or set(error) != {"message", "type", "param", "code"} or word not in error["message"]:
                wrong[name] = got, told
        assert not wrong
        assert post(served, GOOD)[0] == 200
        numbers = served.pool.numbers
        assert numbers.turns_finished == 1 and numbers.rows_in_use == numbers.waiting == 0


def test_what_openai_clients_send_besides_is_accepted(serve):
    besides = {
        "user": "me",
        "store": False,
        "metadata": {},
        "parallel_tool_calls": True,
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "tool_choice": "none",
        "response_format": {"type": "text"},
    }
    parts = [{"type": "text", "text": "w7 "}, {"type": "text", "text": "w8"}]
    with serve() as served:
        assert post(served, {**GOOD, **besides, "messages": [{"role": "user", "content": parts}]})[0] == 200


def test_unknown_paths_and_methods(serve):
    with serve() as served:
        for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 404)):
            got, told = post(served, "", path=path, method=method)
            assert got == status and told["error"]["message"]


def test_keys(serve):
    with serve(api_keys=["one", "two"]) as served:
        for key in ("", "on", "one ", "onee", "three", "ö"):
            wrong = {"Authorization": f"Bearer {key}".encode()} if key else {}
            if key != "one ":
                assert post(served, GOOD, wrong)[0] == 401
        assert post(served, "", path="/metrics", method="GET")[0] == 401
        with pytest.raises(openai.AuthenticationError):
            served.ask([user("w7")], served.client("three"))
        assert served.ask([user("w7")], served.client("two"), max_tokens=2)


def test_sessions_belong_to_a_key(serve):
    with serve(api_keys=["one", "two"]) as served:
        one, two = served.client("one"), served.client("two")
        name = {"X-Session-Id": "garden"}
        first = served.ask([user("w7")], one, max_tokens=9, extra_headers=name).choices[0].message.content
        with served.tokens_read() as fed:
            assert served.ask([user("w7")], two, max_tokens=9, extra_headers=name).choices[0].message.content == first
        assert len(one.get("/sessions", cast_to=object)["data"]) == 1
        two.delete("/sessions/garden", cast_to=object)
        assert len(one.get("/sessions", cast_to=object)["data"]) == 1
        with pytest.raises(openai.NotFoundError):
            two.delete("/sessions/garden", cast_to=object)
        found = [user("w8"), {"role": "assistant", "content": ""}, user("w9")]
        found[1]["content"] = served.ask(found[:1], one, max_tokens=9).choices[0].message.content
        with served.tokens_read() as fed:
            served.ask(found, two, max_tokens=2)
        with served.tokens_read() as theirs:
            served.ask(found, one, max_tokens=2)
        assert theirs[0] < fed[0], "what another client has said is read anew"


def test_a_damaged_session_concerns_itself_alone(serve, tmp_path):
    name, history = {"X-Session-Id": "garden"}, [user("w7")]
    with serve(tmp_path) as served:
        served.ask([user("w7")], max_tokens=2, extra_headers=name)
        said = served.ask(history, max_tokens=2).choices[0].message.content
    for file in (tmp_path / "conversations").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-8] + b"damaged!")
    with serve(tmp_path) as served:
        with pytest.raises(openai.ConflictError, match="damaged") as caught:
            served.ask([user("w8")], extra_headers=name)
        assert str(tmp_path) not in str(caught.value.body)
        history += [{"role": "assistant", "content": said}, user("w8")]
        assert served.ask(history, max_tokens=2), "it is read anew"
        assert served.client().delete("/sessions/garden", cast_to=object)["deleted"]
        assert served.ask([user("w8")], max_tokens=2, extra_headers=name)


def test_sessions_that_never_had_a_turn_do_not_count(serve, endless_model):
    with serve(rows=1, pool={"model": endless_model, "max_waiting": 0}, sessions_per_key=2) as served:
        stream = served.ask([user("w7")], max_tokens=8000, stream=True)
        next(iter(stream))
        for number in range(4):
            with pytest.raises(openai.InternalServerError, match="try again later"):
                served.ask([user("w7")], max_tokens=2, extra_headers={"X-Session-Id": f"s{number}"})
        stream.close()
        wait_until_free(served)
        assert served.ask([user("w7")], max_tokens=2, extra_headers={"X-Session-Id": "good"})


def test_what_is_known_of_deleted_sessions_goes_with_them(serve):
    with serve(sessions_per_key=2) as served:
        for number in range(6):
            served.ask([user(f"w{7 + number}")], max_tokens=2)
        assert len(served.pool.sessions()) == len(served.histories._places.list()) == 2


def test_a_client_has_so_many_sessions_at_most(serve):
    with serve(sessions_per_key=2) as served:
        for word in ("w7", "w8", "w9"):
            served.ask([user(word)], max_tokens=2)
        assert len(served.pool.sessions()) == 2
        for name in ("a", "b"):
            served.ask([user("w7")], max_tokens=2, extra_headers={"X-Session-Id": name})
        assert len(served.pool.sessions()) == 2
        with pytest.raises(openai.RateLimitError, match="delete one"):
            served.ask([user("w7")], extra_headers={"X-Session-Id": "c"})


def test_a_large_body_is_refused_before_it_is_read(serve):
    with serve(max_body_bytes=1000) as served:
        assert post(served, {**GOOD, "messages": [user("w7 " * 1000)]})[0] == 413
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
            raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            raw.sendall(b"800\r\n" + b"x" * 0x800 + b"\r\n")
            assert b" 413 " in raw.recv(4096)


def test_a_slow_body_is_refused(serve):
    with serve(body_seconds=0.3) as served, socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in raw.recv(4096)


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_takes_too_long(serve, endless_model, streams):
    with serve(pool={"model": endless_model}, request_seconds=0.5, max_tokens=100_000) as served:
        with pytest.raises(openai.APIError, match="longer than"):
            reply = served.ask(
                [user("w7")],
                max_tokens=100_000,
                stream=streams,
            )
            list(reply)
        wait_until_free(served)


def test_a_full_server_says_so(serve, endless_model):
    with serve(rows=1, pool={"model": endless_model, "max_waiting": 0}) as served:
        stream = served.ask([user("w7")], max_tokens=8000, stream=True)
        next(iter(stream))
        with pytest.raises(openai.InternalServerError, match="try again later") as caught:
            served.ask([user("w8")], max_tokens=2)
        assert caught.value.status_code == 503
        stream.close()


def test_a_session_takes_one_turn_at_a_time(serve, endless_model):
    name = {"X-Session-Id": "garden"}
    with serve(pool={"model": endless_model}) as served:
        stream = served.ask([user("w7")], max_tokens=8000, stream=True, extra_headers=name)
        next(iter(stream))
        with pytest.raises(openai.ConflictError, match="being answered"):
            served.ask([user("w8")], max_tokens=2, extra_headers=name)
        stream.close()


def test_a_page_of_another_name_cannot_ask(serve):
    with serve() as served:
        for host, status in (("evil.example", 400), ("localhost:8000", 200)):
            headers = {"Host": host, "Content-Type": "application/json"}
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
            connection.request("POST", "/v1/chat/completions", json.dumps(GOOD).encode(), headers)
            assert connection.getresponse().status == status
            connection.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-machine"])
def test_other_machines_need_a_key_or_a_word(host):
    with pytest.raises(ValidationError, match="--api-key"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, no_auth=True) and ServerSettings(host=host, api_keys=["x"])


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("ATTENTION_SINKS_PORT", "81")
    monkeypatch.setenv("ATTENTION_SINKS_API_KEYS", '["a", "b"]')
    assert (settings_from(port=None).port, settings_from(port=82).port) == (81, 82)
    assert settings_from().keys == ["a", "b"] and "'a'" not in repr(settings_from())
