"""Two replicas, one of which dies: `attention-sinks serve --replicas 2` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from urllib.request import urlopen

import openai
import psutil
import pytest
from openai import OpenAI

from support.browser import CHROMIUM, WITHOUT, ChatPage, browser
from support.scripted import save_scripted_model
from support.server import user

LONG = "~" * 800
"""An answer that ends only where the client wants no more, so that it lasts however long a busy test looks away."""

SCRIPT = {f"number {n} <end> <start> assistant ": f"This is {n}." for n in range(8)}
SCRIPT["hum <end> <start> assistant "] = "~"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray Serve does not end by signals on Windows")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A server of two replicas: its process and a client."""
    folder = tmp_path_factory.mktemp("replicas")
    checkpoint = save_scripted_model(folder / "model", SCRIPT, by_bytes=True, endless="~")
    options = ["--replicas", 2, "--sessions", folder / "sessions", "--window", 250, "--name", "tiny", "--port", 0]
    command = [sys.executable, "-m", "attention_sinks", "serve", checkpoint, *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        address = next((found[0] for line in process.stderr if (found := re.search(r"http://\S+/v1", line))), None)
        assert address, "it ended before it listened"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        client = OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)
        stopped(client)  # the front knows both
        yield process, client
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
    assert code == 0


def asked(client, messages, **options):
    """The answer, how many tokens were read for it, and the replica that has made it."""
    options = {"model": "tiny", "messages": messages, "temperature": 0, **options}
    raw = client.chat.completions.with_raw_response.create(**options)
    reply = raw.parse()
    read = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
    return reply.choices[0].message.content, read, raw.headers["x-replica"]


class Talk:
    """A conversation of which the client sends all messages, as most clients do."""

    def __init__(self, client, name):
        self.client, self.messages, self.turns = client, [{"role": "system", "content": f"s{name}"}], []

    def ask(self, text):
        self.messages.append(user(text))
        answer, *where = asked(self.client, self.messages)
        self.messages.append({"role": "assistant", "content": answer})
        self.turns.append(where)
        return answer

    @property
    def replica(self):
        return self.turns[-1][1]


def replicas_of(process):
    """The processes of the replicas that live, by the id of the replica."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if any("Replica:attention_sinks:Replica" in part for part in child.cmdline())]


def test_a_session_with_a_name_and_a_response_have_a_replica(cluster):
    _, client = cluster
    for name in range(3):
        headers = {"X-Session-Id": f"n{name}"}
        where = {asked(client, [user(f"number {turn}")], extra_headers=headers)[2] for turn in range(3)}
        assert len(where) == 1
    assert {entry["id"] for entry in client.get("/sessions", cast_to=object)["data"]} >= {"n0", "n1", "n2"}
    assert client.delete("/sessions/n1", cast_to=object)["deleted"]
    create = client.responses.with_raw_response.create
    for name in range(3):
        where, previous = set(), openai.omit
        for turn in range(3):
            raw = create(
                model="tiny", input=f"number {(name + turn) % 8}", previous_response_id=previous, temperature=0
            )
            assert raw.parse().output_text == f"This is {(name + turn) % 8}."
            where.add(raw.headers["x-replica"])
            previous = raw.parse().id
        assert len(where) == 1


def stopped(client):
    """How many turns were stopped, in all replicas: each is asked until all that live have answered."""
    found, deadline = {}, time.monotonic() + 20
    while len(found) < 2:
        assert time.monotonic() < deadline, found
        with urlopen(f"{client.base_url}".replace("/v1/", "/metrics")) as response:
            numbers = response.read().decode()
            found[response.headers["x-replica"]] = float(re.search(r'turns_total{outcome="stopped"} (\S+)', numbers)[1])
    return sum(found.values())


def test_a_client_that_goes_away_stops_its_answer(cluster):
    _, client = cluster
    before = stopped(client)
    stream = client.chat.completions.create(model="tiny", messages=[user("hum")], temperature=0, stream=True)
    assert "".join(next(stream).choices[0].delta.content or "" for _ in range(3))
    stream.close()
    deadline = time.monotonic() + 20
    while stopped(client) == before:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_bad_requests_are_refused_as_by_one_server(cluster):
    _, client = cluster
    for options, kind in (({"model": "gpt"}, openai.NotFoundError), ({"n": 2}, openai.BadRequestError)):
        with pytest.raises(kind):
            asked(client, [user("number 1")], **options)
    assert [model.id for model in client.models.list()] == ["tiny"]


@pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)
def test_the_page(cluster):
    _, client = cluster
    with browser() as chromium:
        page = ChatPage(chromium.new_page(), str(client.base_url).removesuffix("v1/"))
        assert page.ask("number 3") == "This is 3."
        page.reload()
        page.is_ready()
        assert page.said == ["number 3", "This is 3."]
        assert page.ask("number 4") == "This is 4." and len(page.said) == 4


# The last test: afterwards, conversations move to the replica that takes the place of the one that was killed.
def test_a_conversation_stays_in_its_replica_and_outlives_it(cluster):
    """Twelve conversations, some of which are being answered while one of the two replicas is killed."""
    process, client = cluster
    talks = [Talk(client, name) for name in range(12)]
    for turn in range(3):
        for number, talk in enumerate(talks):
            assert talk.ask(f"number {(number + turn) % 8}") == f"This is {(number + turn) % 8}."
    assert all(len({replica for _, replica in talk.turns}) == 1 for talk in talks)
    assert len({talk.replica for talk in talks}) == 2
    little = max(read for talk in talks for read, _ in talk.turns[1:])
    assert little < min(talk.turns[0][0] for talk in talks) + 10, "only what is new was read"

    before, holding = {talk: talk.replica for talk in talks}, replicas_of(process)
    assert len(holding) == 2
    begun = SimpleQueue()

    def stream(talk):
        options = {"model": "tiny", "temperature": 0, "max_tokens": len(LONG), "stream": True}
        text = ""
        try:
            for piece in client.chat.completions.create(messages=[*talk.messages, user("hum")], **options):
                text += piece.choices[0].delta.content or ""
                begun.put(talk.replica)
            return text
        except openai.APIError as error:
            return error

    with ThreadPoolExecutor(len(talks)) as threads:
        streams = [threads.submit(stream, talk) for talk in talks]
        answering = set()
        while len(answering) < 2:  # not all: those for whom a replica has no row wait for others to end
            answering.add(begun.get(timeout=60))
        holding[0].kill()
        results = [stream.result(60) for stream in streams]
    errors = [result for result in results if isinstance(result, Exception)]
    assert errors and len(errors) < len(talks), results
    assert all(result == LONG for result in results if result not in errors)
    assert all("replica" in str(error) for error in errors), errors

    for talk, result in zip(talks, results, strict=True):
        if result not in errors:
            talk.messages += [user("hum"), {"role": "assistant", "content": LONG}]
        assert talk.ask("number 1") == "This is 1." and (talk.replica != before[talk] or result not in errors)
        assert talk.turns[-1][0] <= little, "it went on from its last finished turn"
