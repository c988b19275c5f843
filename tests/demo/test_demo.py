"""The demos, run as a user runs them, on a tiny random model."""

import json
import signal
import subprocess
import sys

import pytest
from transformers import GenerationConfig

from support.helpers import tiny_llama
from support.paths import ROOT
from support.toy_tokenizers import save_chat_model, word_tokenizer

DEMO = ROOT / "demo"


@pytest.fixture
def folder(tmp_path):
    return save_chat_model(tmp_path / "tiny")


def run(script, *arguments, typed=None, refused=False):
    command = [sys.executable, DEMO / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=typed)
    assert (done.returncode != 0) == refused, done.stderr
    return done.stderr if refused else done.stdout


@pytest.mark.parametrize("experiment", ["attention_sinks", "windowed", "transformers"])
def test_a_chat_runs_and_sums_up(folder, tmp_path, experiment):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"turns": [f"w{i} w{i + 1}", f"w{i}"]}) for i in range(3)))
    options = ("--model_name_or_path", folder, "--experiment", experiment, "--dataset_name", prompts)
    options += ("--window_size", 16, "--max_new_tokens", 12, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    printed = run("streaming.py", *options)
    assert printed.count("User: w") == 6 and "turns" in printed
    assert "User: w2 w3" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_chat_is_also_logged_in_json_lines(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w0 w1\nw2\n")
    options = ("--model_name_or_path", folder, "--dataset_name", prompts, "--window_size", 16, "--device", "cpu")
    options += ("--max_new_tokens", 6, "--log_file", tmp_path / "log.txt", "--json_log", tmp_path / "new" / "log.jsonl")
    printed = run("streaming.py", *options)
    run_line, *turns, summary = map(json.loads, (tmp_path / "new" / "log.jsonl").read_text("utf-8").splitlines())
    assert (run_line["experiment"], run_line["model"]) == ("attention_sinks", "tiny")
    assert (run_line["attention_sink_size"], run_line["window_size"]) == (4, 16)
    assert [turn["prompt"] for turn in turns] == ["w0 w1", "w2"]
    assert all(f"Assistant: {turn['answer']}\n" in printed for turn in turns)
    assert summary["turns"] == 2 and summary["tokens_cached"] == 16 and summary["tokens_written"] > 0


def test_endless_generation_runs(folder, tmp_path):
    options = ("--model_name_or_path", folder, "--text", "w1 w2", "--min_new_tokens", 60, "--max_new_tokens", 60)
    options += ("--window_size", 16, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    assert "60" in run("endless_generation.py", *options)


def test_endless_generation_ends_in_order_after_ctrl_c(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DEMO)
    import endless_generation
    import utils

    presses = iter([signal.SIGINT])

    def press_once(streamer, text, stream_end=False):
        for number in presses:
            signal.raise_signal(number)

    options = ("--model_name_or_path", folder, "--text", "w1 w2", "--min_new_tokens", 10**6, "--max_new_tokens", 10**6)
    options += ("--window_size", 16, "--log_file", tmp_path / "log.txt", "--device", "cpu", "--temperature", 0)
    monkeypatch.setattr(sys, "argv", ["endless_generation.py", *map(str, options)])
    monkeypatch.setattr(utils.FileStreamer, "on_finalized_text", press_once)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        endless_generation.main()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "tokens streamed" in capsys.readouterr().out


def test_prompts_typed_in_the_terminal(folder, tmp_path):
    options = ("--interactive", "--model_name_or_path", folder, "--device", "cpu", "--log_file", tmp_path / "log.txt")
    printed = run("streaming.py", *options, "--window_size", 16, "--max_new_tokens", 5, typed="w1 w2\n\nw3\nexit\nw4\n")
    assert printed.count("Assistant: ") == 2 and "turns                 2" in printed
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count("User: w") == 2


def test_a_model_without_chat_template_is_pointed_to_the_other_demo(folder):
    (folder / "chat_template.jinja").unlink()
    message = run("streaming.py", "--model_name_or_path", folder, "--device", "cpu", refused=True)
    assert "chat template" in message and "endless_generation.py" in message and "Traceback" not in message


def test_the_plain_chat_says_what_generate_says_of_the_whole_conversation(monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    import streaming

    model, tokenizer = tiny_llama(), word_tokenizer()
    settings = GenerationConfig(max_new_tokens=6, suppress_tokens=[0, 1, 2, 3, 4, 5], eos_token_id=1)
    chat, messages = streaming.PlainChat(model, tokenizer, generation_config=settings), []
    for question in ("w1 w2", "w3", "w4 w5"):
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").input_ids
        expected = model.generate(ids, generation_config=settings, pad_token_id=1)[0, ids.shape[1] :]
        messages.append({"role": "assistant", "content": "".join(chat.send(question))})
        assert messages[-1]["content"] == tokenizer.decode(expected)
    assert chat.cache.get_seq_length() == ids.shape[1] + 5
