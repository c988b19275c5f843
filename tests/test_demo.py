"""The demos, run as a user runs them, on a tiny random model; and what a turn feeds to the stream."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers import tiny_llama

DEMO = Path(__file__).resolve().parents[1] / "demo"
CHATML = (
    "{% for m in messages %}<start> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
COUNTS_TURNS = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"


def word_tokenizer(template):
    words = ["<unk>", "<end>", "<start>", "user", "assistant", *(f"w{i}" for i in range(59))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    fast.chat_template = template
    return fast


@pytest.fixture
def folder(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "tiny")
    word_tokenizer(CHATML).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    import streaming

    return streaming


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, DEMO / script, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("experiment", ["attention_sinks", "windowed", "transformers"])
def test_a_chat_runs_and_sums_up(folder, tmp_path, experiment):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"turns": [f"w{i} w{i + 1}", f"w{i}"]}) for i in range(3)))
    options = ("--model_name_or_path", folder, "--experiment", experiment, "--dataset_name", prompts)
    options += ("--window_size", 16, "--max_new_tokens", 12, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    printed = run("streaming.py", *options)
    assert printed.count("User: w") == 6 and "turns" in printed
    assert "User: w2 w3" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_endless_generation_runs(folder, tmp_path):
    options = ("--model_name_or_path", folder, "--text", "w1 w2", "--min_new_tokens", 60, "--max_new_tokens", 60)
    options += ("--window_size", 16, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    assert "60" in run("endless_generation.py", *options)


def test_turns_add_up_to_the_template(streaming):
    tokenizer = word_tokenizer(CHATML)
    questions, answers = ["w1", "w2 w3", "w4"], ["w5 w6", "w7", "w8"]
    fed, messages = "", []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        fed += streaming.turn_text(tokenizer, question, first=number == 0)
        messages.append({"role": "user", "content": question})
        assert fed == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        fed += answer
        messages.append({"role": "assistant", "content": answer})


@pytest.mark.parametrize("template", [COUNTS_TURNS, None])
def test_templates_that_cannot_stream_are_refused(streaming, template):
    with pytest.raises(SystemExit, match="chat template"):
        streaming.turn_text(word_tokenizer(template), "w1", first=True)
