"""Two processes that share a model: `attention-sinks serve --tensor-parallel 2`, and what ends all of them."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import psutil
import pytest
import torch
from openai import OpenAI
from typer.testing import CliRunner

from attention_sinks import AutoModelForCausalLM, AutoTokenizer, StreamPool
from attention_sinks.command.app import app
from attention_sinks.command.sharing import _check_model
from attention_sinks.report.source import Source
from support.helpers import refused, tiny_config
from support.server import serving, user
from support.toy_tokenizers import byte_tokenizer, save_chat_model
from support.zoo import animal_of

WINDOW = 24
SPEAKS = {"suppress_tokens": [0, 2, 3, 4, 5], "max_new_tokens": 12}

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="processes do not end by signals on Windows"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this PyTorch has no gloo, with which processes on a CPU talk",
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that says words without a meaning to the template, of which there are 58."""
    folder = save_chat_model(tmp_path_factory.mktemp("shared") / "model", num_key_value_heads=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config.update(**SPEAKS)
    model.generation_config.save_pretrained(folder)
    return folder


class Running:
    """A server whose model two processes share: the first process, the other one, and a client."""

    def __init__(self, checkpoint, folder):
        sessions = ["--in-memory"] if folder is None else ["--sessions", folder]
        options = ["--tensor-parallel", 2, *sessions, "--window", WINDOW, "--name", "tiny", "--port", 0, "--no-page"]
        command = [sys.executable, "-m", "attention_sinks", "serve", checkpoint, "--rows", 4, *options]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([*map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
        self.told = []
        address = next((found[0] for line in self.lines() if (found := re.search(r"http://\S+/v1", line))), None)
        assert address, "".join(self.told)
        self.reading = threading.Thread(target=lambda: [*self.lines()], daemon=True)
        self.reading.start()
        self.client = OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)
        children = psutil.Process(self.process.pid).children()
        (self.other,) = [child for child in children if any("spawn_main" in part for part in child.cmdline())]

    def lines(self):
        for line in self.process.stderr:
            self.told.append(line)
            yield line


@contextmanager
def running(checkpoint, folder=None):
    server = Running(checkpoint, folder)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def shared(checkpoint, folder):
    with running(checkpoint, folder) as server:
        yield server


@pytest.fixture(scope="module")
def alone(checkpoint):
    """A client of a server whose model one process has."""
    with serving(pool_of(checkpoint)) as served:
        yield served.client()


def pool_of(checkpoint, **options):
    sizes = {"attention_sink_size": 4, "attention_sink_window_size": WINDOW}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, **sizes)
    return StreamPool(model, AutoTokenizer.from_pretrained(checkpoint), rows=4, **options)


def ask(client, messages, **options):
    options = {"model": "tiny", "temperature": 0, **options}
    return client.chat.completions.create(messages=messages, **options)


def talk(client, number):
    """Take four turns, go back to the second and take another way from there. Return all that was said."""
    messages, said = [{"role": "system", "content": f"w{number} " + "w8 " * 20}], []
    for turn, text in enumerate([f"w{number} w1", "w2 " * (3 * number + 1), "w3", "w4 w5", "w6"]):
        if turn == 3:
            messages = messages[:3]
        messages.append(user(text))
        reply = ask(client, messages, max_tokens=5 + 2 * number)
        usage = reply.usage
        said.append((reply.choices[0].message.content, usage.total_tokens, usage.prompt_tokens_details.cached_tokens))
        messages.append({"role": "assistant", "content": said[-1][0]})
    return said


def test_many_conversations_at_once(shared, alone):
    with ThreadPoolExecutor(7) as threads:
        said = [*threads.map(lambda number: talk(shared.client, number % 5), range(7))]
    expected = [talk(alone, number) for number in range(5)]
    assert [[words for words, *_ in each] for each in said] == [
        [words for words, *_ in expected[number % 5]] for number in range(7)
    ]
    assert said[2:5] == expected[2:5], "as much was read as by one process, where no other client says the same"
    assert len({str(each) for each in expected}) == 5 and any(cached for *_, cached in expected[0])


def test_a_client_that_goes_away_and_one_that_is_refused(shared, alone):
    long = ask(shared.client, [user("w7 w7")], stream=True, max_tokens=500)
    for _ in range(3):
        next(long)
    long.close()
    for options, kind in (({"model": "gpt"}, openai.NotFoundError), ({"n": 2}, openai.BadRequestError)):
        with pytest.raises(kind):
            ask(shared.client, [user("w1")], **options)
    assert talk(shared.client, 6) == talk(alone, 6)


def test_samples_come_from_one_process(shared, alone):
    options = {"temperature": 1.5, "seed": 3, "max_tokens": 12}
    said = [ask(client, [user("w9")], **options).choices[0].message.content for client in (shared.client, alone)]
    assert said[0] == said[1]


def kept(client, text):
    """The answer of a session with a name, and how many tokens it could see."""
    reply = ask(client, [user(text)], max_tokens=8, extra_headers={"X-Session-Id": "kept"})
    return reply.choices[0].message.content, reply.usage.prompt_tokens


TURNS = ["w3 w3 " + "w1 " * 40, "w4", "w5", "w6"]


# The last test of this server.
def test_a_process_that_is_killed_ends_all(shared):
    assert all(kept(shared.client, text)[0] for text in TURNS[:2])
    stream = ask(shared.client, [user("w1 w2")], stream=True, max_tokens=5000)
    next(stream)
    shared.other.kill()
    assert shared.process.wait(20) == 1
    shared.reading.join(10)
    assert "process 2 of 2" in "".join(shared.told) and "SIGKILL" in "".join(shared.told)


def test_any_number_of_processes_goes_on_from_a_folder(checkpoint, folder, alone):
    """Two processes have kept the first two turns, before they were killed; one takes the next, and two the last."""
    expected = [kept(alone, text) for text in TURNS]
    pool = pool_of(checkpoint, sessions=folder / "conversations")
    with serving(pool, folder) as served:
        assert kept(served.client(), TURNS[2]) == expected[2]
        assert pool.numbers.tokens_read < 20
    with running(checkpoint, folder) as server:
        assert kept(server.client, TURNS[3]) == expected[3]
        # uvicorn hands Ctrl-C on at its very end, when it may come too late
        assert_none_outlives(server, signal.SIGINT, {0, 130})


def test_no_process_outlives_one_that_is_killed(checkpoint):
    with running(checkpoint) as server:
        assert_none_outlives(server, signal.SIGKILL, {-signal.SIGKILL})


def assert_none_outlives(server, number, codes):
    """All processes end soon when the first one gets a signal, and not when the other one gets it."""
    stream = ask(server.client, [user("w1 w2")], stream=True, max_tokens=5000)
    next(stream)
    for early in (signal.SIGINT, signal.SIGTERM):  # those of a terminal and of a service go to all processes
        server.other.send_signal(early)
    assert next(stream)
    server.process.send_signal(number)
    assert server.process.wait(20) in codes
    psutil.wait_procs([server.other], timeout=10)
    assert not server.other.is_running()


REFUSED = {
    "replicas": (["--replicas", "2"], "--replicas"),
    "compile": (["--compile"], "--compile"),
    "device": (["--device", "cpu"], "--device"),
    "three": (["--tensor-parallel", "3"], "num_key_value_heads=2"),
    "many": (["--tensor-parallel", "4"], "num_key_value_heads=2"),
    "none": (["--tensor-parallel", "0"], "--tensor-parallel"),
}


@pytest.mark.parametrize(("options", "word"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_shared_is_refused_in_one_line(checkpoint, options, word):
    given = ["serve", str(checkpoint), "--in-memory", "--port", "0", "--tensor-parallel", "2", *options]
    assert_refused(given, word)


def test_models_that_cannot_be_cut_are_refused(tmp_path):
    given = ["--in-memory", "--port", "0", "--window", "20", "--tensor-parallel", "2"]
    tokenizer = byte_tokenizer()
    for part in (animal_of("bloom", vocab_size=len(tokenizer)).build(), tokenizer):
        part.save_pretrained(tmp_path / "bloom")
    assert_refused(["serve", str(tmp_path / "bloom"), *given], "no plan")
    of_file = SimpleNamespace(source=Source("tiny.gguf", ".", "tiny.gguf"))
    refused(ValueError, lambda: _check_model(2, of_file, tiny_config()), "GGUF", "--tensor-parallel=2")


def assert_refused(given, word):
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2 and word in result.stderr
    assert "Traceback" not in result.stderr and not multiprocessing.active_children()
