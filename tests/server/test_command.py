"""`attention-sinks serve` in a process of its own: what it says, what it refuses, and what a kill leaves."""

import os
import random
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.request import urlopen

import pytest
from openai import APIConnectionError, OpenAI

from support.scripted import WITH_TOOLS, save_scripted_model
from support.server import history_of, user
from support.toy_tokenizers import byte_tokenizer
from support.zoo import animal_of

ANSWERS = {f"number {n} <end> <start> assistant ": f"This is {n}." for n in range(8)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_scripted_model(tmp_path_factory.mktemp("served"), ANSWERS, by_bytes=True)


OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def command(*options):
    arguments = [sys.executable, "-m", "attention_sinks", "serve", *map(str, options)]
    return subprocess.Popen(arguments, env=OFFLINE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def served(checkpoint, folder=None, page="--no-page"):
    """A running server: its process and a client. Without a folder it keeps conversations in memory."""
    sessions = ["--in-memory"] if folder is None else ["--sessions", folder]
    process = command(checkpoint, "--port", 0, "--window", 200, "--name", "tiny", page, *sessions)
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        draining = threading.Thread(target=process.stderr.read, daemon=True)
        draining.start()
        yield process, OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)
    finally:
        process.kill()
        process.wait()


def ask(client, messages, **options):
    return client.chat.completions.create(model="tiny", messages=messages, temperature=0, **options)


def test_a_conversation_goes_on_after_kills_at_random_times(checkpoint, tmp_path):
    """Every turn that was answered is known afterwards; the one amid which the server was killed is asked again."""
    chance, messages, read = random.Random(0), [], []
    for number in range(6):
        messages.append(user(f"number {number}"))
        with served(checkpoint, tmp_path) as (process, client):
            reply = ask(client, messages)
            assert reply.choices[0].message.content == f"This is {number}."
            usage = reply.usage
            read.append(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens)
            messages.append({"role": "assistant", "content": reply.choices[0].message.content})
            threading.Timer(chance.random() / 5, process.kill).start()
            with pytest.raises(APIConnectionError):
                for _ in range(1000):
                    ask(client, [user("number 7")])
    assert max(read) <= read[0] + 40, "only the new message was read, whatever was killed"


def test_it_ends_when_it_is_told_to(checkpoint, tmp_path):
    with served(checkpoint, tmp_path, "--page") as (process, client):
        with urlopen(str(client.base_url).removesuffix("v1/")) as page:
            assert b"gradio" in page.read()
        stream = client.chat.completions.create(model="tiny", messages=[user("number 1")], stream=True)
        assert history_of(stream)
        process.terminate()
        assert process.wait(20) in (0, -15)


def test_a_model_with_states_is_served_from_memory(tmp_path):
    tokenizer = byte_tokenizer(WITH_TOOLS)
    for part in (animal_of("lfm2", vocab_size=len(tokenizer)).build(), tokenizer):
        part.save_pretrained(tmp_path / "model")
    process = command(tmp_path / "model", "--sessions", tmp_path / "none", "--window", 20)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "--in-memory" in err and "Traceback" not in err
    with served(tmp_path / "model") as (_, client):
        messages = [user("number 1")]
        for text in ("number 2", "number 3"):
            said = ask(client, messages, max_tokens=4).choices[0].message.content
            messages += [{"role": "assistant", "content": said}, user(text)]
        usage = ask(client, messages, max_tokens=4).usage
        assert usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--port", "99999"], "port"),
        (["--window", "0"], "--window"),
        (["--template-kwargs", "{"], "JSON"),
        (["--rows", "0"], "--rows"),
        (["--in-memory"], "--sessions"),
    ],
)
def test_bad_options_are_refused_in_one_line(checkpoint, tmp_path, options, word):
    process = command(checkpoint, "--sessions", tmp_path / "none", *options)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, "")
    assert word in err and "Traceback" not in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("package", "extra"), [("ray", "ray"), ("gradio", "serve"), ("fastapi", "serve")])
def test_a_package_that_is_missing(checkpoint, tmp_path, package, extra):
    hidden = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['attention-sinks', *sys.argv[1:]]; "
    program = hidden + "runpy.run_module('attention_sinks', run_name='__main__')"
    options = ["--in-memory", "--port", "0", "--window", "200", "--replicas", "2" if package == "ray" else "1"]
    arguments = [sys.executable, "-c", program, "serve", str(checkpoint), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, env=OFFLINE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{package} is not installed; call `pip install 'attention_sinks[{extra}]'`" in done.stderr


def test_a_port_that_is_taken(checkpoint, tmp_path):
    with served(checkpoint, tmp_path / "one") as (_, client):
        process = command(checkpoint, "--sessions", tmp_path / "two", "--port", client.base_url.port)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "port" in err and "Traceback" not in err


def test_a_folder_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    process = command(checkpoint, "--sessions", tmp_path / "file")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "Traceback" not in err
