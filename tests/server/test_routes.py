"""The key that a request is routed by: the same for all requests of one conversation, and for no others."""

import json

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st

from attention_sinks.server.routes import KEY, RESPONSE_ID, ROUTE, response_name, route_of
from support.server import user


def request(path="/v1/chat/completions", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": raw, "scheme": "http"}
    )


def route(path="/v1/chat/completions", body=None, **headers):
    return route_of(request(path, **headers), json.dumps(body).encode())


def answer(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "s"}


def test_a_history_that_grows_keeps_its_key():
    messages = [SYSTEM, user("w1")]
    first = route(body={"messages": messages})
    messages += [answer("w2"), user("w3")]
    assert KEY.fullmatch(first) and route(body={"messages": messages, "stream": True}) == first


@pytest.mark.parametrize(
    "other",
    [
        {"body": {"messages": [SYSTEM, user("w2")]}},
        {"body": {"messages": [user("w1")]}},
        {"body": {"messages": [SYSTEM, user("w1")]}, "authorization": "Bearer one"},
        {"body": {"messages": [SYSTEM, user("w1")]}, "x_session_id": "one"},
        {"path": "/"},
    ],
)
def test_other_conversations_have_others(other):
    assert route(body={"messages": [SYSTEM, user("w1")]}) != route(**other)


def test_a_session_has_one_key_for_all_that_is_done_with_it():
    keys = {route(body={"messages": [user(text)]}, x_session_id="a b") for text in ("w1", "w2")}
    assert keys == {route("/v1/sessions/a%20b")} != {route("/v1/sessions/ab")}


def test_a_response_goes_on_where_it_was_made():
    first = route("/v1/responses", {"input": "w1"})
    name = response_name(request("/v1/responses", **{ROUTE: first}))
    assert RESPONSE_ID.fullmatch(name)
    assert route("/v1/responses", {"input": "w2", "previous_response_id": name}) == first


@pytest.mark.parametrize("forged", ["", "../..", "A" * 16, "0" * 17])
def test_a_forged_key_is_no_part_of_a_response(forged):
    assert len(response_name(request(**{ROUTE: forged}))) == len("resp_") + 32


def test_the_page_goes_by_its_reader_alone():
    paths = ("/", "/config", "/gradio_api/queue/join", "/gradio_api/heartbeat/x")
    assert len({route(path, authorization="Basic one") for path in paths}) == 1
    assert route("/", authorization="Basic one") != route("/", authorization="Basic two")


@given(
    st.binary(max_size=40) | st.recursive(st.none() | st.text(), st.lists).map(lambda each: json.dumps(each).encode())
)
def test_any_body_has_a_key(body):
    assert KEY.fullmatch(route_of(request(), body))


@pytest.mark.parametrize("depth", [100, 900, 990, 5000])
def test_nested_bodies_have_a_key(depth):
    assert KEY.fullmatch(route_of(request(), b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"))


@given(
    st.dictionaries(
        st.sampled_from(["messages", "input", "previous_response_id"]),
        st.recursive(
            st.none() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
        ),
    )
)
def test_any_request_has_a_key(body):
    assert KEY.fullmatch(route("/v1/responses", body))
