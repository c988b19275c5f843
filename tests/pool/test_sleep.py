"""Conversations of a pool that sleep in a folder: they go on bit for bit, also after a kill, and only in one place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_sinks import (
    AutoModelForCausalLM,
    AutoTokenizer,
    SessionInUseError,
    StreamingChat,
    inject_attention_sinks,
)
from support.helpers import refused, tiny_llama
from support.pools import END, S, W, config
from support.scripted import save_scripted_model
from support.toy_tokenizers import word_tokenizer
from support.zoo import animal_of

MESSAGES = [f"w{7 * turn % 40} w{turn} w3 w4" for turn in range(6)]


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return tmp_path / "sessions" if request.param == "local" else f"memory://{tmp_path}"


def test_each_turn_may_be_taken_by_another_pool(pool_of, alone, folder):
    said = []
    for message in MESSAGES:
        with pool_of(2, sessions=folder) as pool:
            said.append(str(pool.conversation("a").ask(message)))
    assert said == alone(MESSAGES)


def test_two_pools_take_turns_in_one_conversation(pool_of, alone, folder):
    pools = [pool_of(2, sessions=folder) for _ in range(2)]
    conversations = [pool.conversation("a") for pool in pools]
    said = [str(conversations[turn % 2].ask(message)) for turn, message in enumerate(MESSAGES)]
    assert said == alone(MESSAGES)


def test_a_conversation_that_another_pool_answers_is_in_use(pool_of, folder):
    pools = [pool_of(2, sessions=folder) for _ in range(2)]
    endless = config(eos_token_id=END, max_new_tokens=100000, suppress_tokens=range(6))
    answer = pools[0].conversation("a").send("w1", generation_config=endless)
    next(answer)
    with pytest.raises(SessionInUseError):
        pools[1].conversation("a").ask("w2")
    assert pools[1].conversation("b").ask("w2").finish_reason
    answer.close()
    while pools[0].numbers.rows_in_use:
        pass
    assert pools[1].conversation("a").ask("w2").finish_reason


def test_memory_is_bounded_and_nothing_is_lost(pool_of, alone, folder):
    pool = pool_of(2, sessions=folder, max_session_bytes=30_000)
    conversations = [pool.conversation(f"c{number}") for number in range(6)]
    said = [
        [str(each.ask(f"w{number} {message}")) for number, each in enumerate(conversations)] for message in MESSAGES
    ]
    assert 0 < pool.numbers.sleeping_bytes <= 30_000
    assert sum(session.in_memory for session in pool.sessions()) < 6 == len(pool.sessions())
    for number in range(6):
        assert [turn[number] for turn in said] == alone([f"w{number} {message}" for message in MESSAGES])


def test_a_damaged_file_concerns_its_session_alone(pool_of, tmp_path):
    with pool_of(2, sessions=tmp_path) as pool:
        for name in ("a", "b"):
            pool.conversation(name).ask("w1")
    broken = max(tmp_path.glob("*.safetensors"))
    content = bytearray(broken.read_bytes())
    content[-5] ^= 1
    broken.write_bytes(content)
    pool, outcomes = pool_of(2, sessions=tmp_path), {}
    for name in ("a", "b"):
        try:
            outcomes[name] = pool.conversation(name).ask("w2").finish_reason
        except ValueError as error:
            outcomes[name] = str(error)
    (message,) = [outcome for outcome in outcomes.values() if "checksum" in outcome]
    assert str(broken) in message and len(set(outcomes.values()) & {"stop", "length"}) == 1
    (damaged,) = [name for name, outcome in outcomes.items() if outcome == message]
    pool.delete(damaged)
    assert pool.conversation(damaged).ask("w2").finish_reason and pool.conversation(damaged).turns_in_window == [1]


def test_what_does_not_belong_together_is_refused(pool_of, tmp_path):
    with pool_of(1, sessions=tmp_path, system="w1 w2") as pool:
        pool.conversation("a").ask("w1")
        refused(ValueError, lambda: pool.conversation("a", system="w5").ask("w3"), "system")
        assert pool.conversation("a", system="w1 w2").ask("w3").finish_reason
    refused(ValueError, lambda: pool_of(1, sessions=tmp_path, attention_sink_size=9).conversation("a").ask("w1"), "S=9")
    other = inject_attention_sinks(tiny_llama(1), S, W)
    refused(ValueError, lambda: pool_of(1, model=other, sessions=tmp_path).conversation("a").ask("w1"), "another model")
    words = word_tokenizer("{{ bos_token }} " + word_tokenizer().chat_template)
    again = pool_of(1, tokenizer=words, sessions=tmp_path, attention_sink_size=S)
    assert again.conversation("b").ask("w1").finish_reason
    hybrid = inject_attention_sinks(animal_of("bamba").build(), S, W)
    refused(NotImplementedError, lambda: pool_of(1, model=hybrid, sessions=tmp_path), "sessions")


def test_a_turn_that_cannot_be_saved_says_so_and_goes_on(pool_of, alone, tmp_path, monkeypatch):
    pool = pool_of(1, sessions=tmp_path)
    conversation = pool.conversation("a")
    first = conversation.ask(MESSAGES[0])
    write = pool._store._files.write
    monkeypatch.setattr(pool._store._files, "write", lambda *given: (_ for _ in ()).throw(OSError("no space left")))
    answer = conversation.send(MESSAGES[1])
    with pytest.raises(OSError, match="no space left.*turn is complete"):
        list(answer)
    monkeypatch.setattr(pool._store._files, "write", write)
    assert [str(first), str(answer), str(conversation.ask(MESSAGES[2]))] == alone(MESSAGES[:3])


ASKED, TOLD = "<start> user w1 w2 <end> <start> assistant", "<start> tool 5 <end> <start> assistant"
CALL = '<think> w3 w4 </think> <tool_call> {"name": "add", "arguments": {"number": 2}} </tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}}},
}


@pytest.fixture(scope="module")
def calling(tmp_path_factory):
    """A model that thinks, calls a tool, and thinks again, and its tokenizer."""
    answers = {ASKED: CALL, TOLD: "<think> w8 w9 </think> w7 5"}
    folder = save_scripted_model(tmp_path_factory.mktemp("models") / "calls", answers)
    model = AutoModelForCausalLM.from_pretrained(folder, attention_sink_size=S, attention_sink_window_size=200)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("thoughts", ["keep", "forget"])
def test_a_conversation_may_sleep_between_a_call_and_its_result(pool_of, calling, thoughts, tmp_path):
    model, tokenizer = calling
    settings = {"tools": [TOOL], "thoughts": thoughts, "generation_config": None}
    result = {"role": "tool", "name": "add", "content": "5"}
    expected = []
    for number in range(2):
        chat = StreamingChat(model, tokenizer, **settings)
        for message in ("w1 w2", result, "w5"):
            answer = chat.ask(message)
            expected.append((answer.text.strip(), answer.thoughts.strip(), len(answer.tool_calls), answer.usage))
            if number:
                chat.save(tmp_path / "chat")
                chat = StreamingChat.load(tmp_path / "chat", model, tokenizer)
    said = []
    for number in range(2):
        pool = pool_of(2, model=model, tokenizer=tokenizer, sessions=tmp_path / f"{number}", **settings)
        for message in ("w1 w2", result, "w5"):
            answer = pool.conversation("a").ask(message)
            said.append((answer.text.strip(), answer.thoughts.strip(), len(answer.tool_calls), answer.usage))
            if number:
                pool.close()
                pool = pool_of(2, model=model, tokenizer=tokenizer, sessions=tmp_path / f"{number}", **settings)
    assert said == expected and [turn[2] for turn in said[:3]] == [1, 0, 0] and said[1][0] == "w7 5"


TALKER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from attention_sinks import StreamPool, inject_attention_sinks
from support.helpers import tiny_llama
from support.pools import S, W, config
from support.scripted import save_scripted_model
from support.toy_tokenizers import word_tokenizer

folder, said = sys.argv[1:]
pool = StreamPool(inject_attention_sinks(tiny_llama(), S, W), word_tokenizer(), rows=2, sessions=folder)
conversations = [pool.conversation(name) for name in "ab"]
for turn in range(1000):
    answers = [each.send(f"w{turn % 50} w7", generation_config=config()) for each in conversations]
    for name, answer in zip("ab", answers, strict=True):
        text = "".join(answer)
        with open(said, "a") as file:  # a turn that has ended
            print(name, text, file=file, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_process_loses_no_turn_that_has_ended(pool_of, alone, tmp_path):
    said, turns = tmp_path / "said.txt", {"a": 0, "b": 0}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", TALKER, str(tmp_path / "sessions"), str(said)]
    process = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        while not said.exists() or said.read_text().count("\n") < 31:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    for line in said.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            turns[line[0]] += 1
    pool = pool_of(2, sessions=tmp_path / "sessions")
    for name, count in turns.items():
        messages = [f"w{turn % 50} w7" for turn in range(count + 2)]
        goes_on = str(pool.conversation(name).ask("w9"))
        possible = [alone([*messages[:ended], "w9"])[-1] for ended in (count, count + 1)]
        assert goes_on in possible and count >= 15
