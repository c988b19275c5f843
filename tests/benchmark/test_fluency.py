"""benchmark/quality/fluency.py: logs of the chat demo split into answers, answers judged by the two published rules."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from benchmark.data import words
from benchmark.quality.chat_log import read_chat_log
from support.benchmark_helpers import BENCHMARK, random_text, refused, run_script, save_tiny_model

pytest.importorskip("nltk")

CHATML = (
    "{% for m in messages %}{{ 'w3' if m['role'] == 'assistant' else 'w1' }} {{ m['content'] }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w3 {% endif %}"
)
HEADER = '{"experiment": "windowed", "model": "tiny"}\n'
GOOD = "The river runs quietly\n\nthrough the old town."
BAD = "zxqv zxqv 0 0 0 the"


def give_chat_template(folder, template):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return folder


def log_text(experiment, answers):
    turns = [{"prompt": f"question {i}", "answer": answer} for i, answer in enumerate(answers)]
    entries = [{"experiment": experiment, "model": "tiny"}, *turns, {"turns": len(answers), "tokens_streamed": 1234}]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


@pytest.fixture
def word_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("The\nriver\nruns\nquietly\nthrough\nold\ntown\na\n")
    return path


@pytest.fixture
def fluency(tmp_path, word_list):
    def run(answers_by_experiment, *options, **changes):
        paths = []
        for name, answers in answers_by_experiment.items():
            paths.append(tmp_path / f"{name}.jsonl")
            paths[-1].write_text(answers if isinstance(answers, str) else log_text(name, answers))
        named = {"words": word_list, "output": tmp_path / "fluency.csv", **changes}
        return run_script(
            "quality/fluency", *paths, *options, *(str(x) for k, v in named.items() for x in (f"--{k}", v))
        )

    run.frame = lambda: pd.read_csv(tmp_path / "fluency.csv")
    return run


def test_every_answer_is_judged(fluency, tmp_path):
    done = fluency({"windowed": [GOOD, BAD, BAD], "attention_sinks": [GOOD] * 3}, "--plot", str(tmp_path / "f.png"))
    assert done.code == 0, done.errors
    frame = fluency.frame()
    assert list(frame) == ["experiment", "response", "tokens", "real_words", "distinct_characters", "lost", "repeated"]
    assert list(frame["experiment"]) == ["attention_sinks"] * 3 + ["windowed"] * 3
    assert list(frame["lost"]) == [0, 0, 0, 0, 1, 1]
    assert list(frame["repeated"]) == [0, 1, 1, 0, 0, 1]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert "words.txt" in done.output


@pytest.mark.parametrize(
    "answer, lost",
    [
        ("", 1),
        ("river runs", 1),
        ("The river runs", 0),
        ("THE RIVER RUNS!", 0),
        ("the the the the", 1),  # three words, but the same
        ("the old town " * 400, 1),  # 1,200 tokens, 9 characters
        ("the old town " * 300, 0),  # as dull, but not longer than 1,000 tokens
        ("the old town " * 400 + "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 0),
    ],
)
def test_the_two_rules(fluency, answer, lost):
    fluency({"windowed": [answer]})
    assert list(fluency.frame()["lost"]) == [lost]


def test_an_answer_that_differs_in_its_number_alone_is_a_repetition(fluency):
    fluency({"windowed": ["1. The old town.", "2. The old town.", "3. The town.", "The old Town"]})
    assert list(fluency.frame()["repeated"]) == [0, 1, 0, 1]


def test_paragraphs_and_the_summary_do_not_split_an_answer(fluency, tmp_path):
    fluency({"windowed": ["one\n\ntwo\n\nthree", "", "last"]})
    assert read_chat_log(tmp_path / "windowed.jsonl").answers == ["one\n\ntwo\n\nthree", "", "last"]


def test_an_interrupted_log_counts_what_is_there(fluency, tmp_path):
    text = log_text("windowed", [GOOD, GOOD]).partition('{"turns"')[0] + '{"prompt": "qu'
    assert fluency({"windowed": text}).code == 0
    log = read_chat_log(tmp_path / "windowed.jsonl")
    assert log.answers == [GOOD, GOOD] and log.turns is None


def test_the_last_run_in_a_log_counts_and_this_is_said(fluency):
    done = fluency({"windowed": log_text("windowed", [BAD] * 3) + log_text("windowed", [GOOD])})
    assert "2 runs" in done.errors and list(fluency.frame()["lost"]) == [0]


def test_turns_that_a_model_made_up_are_part_of_its_answer(fluency, tmp_path):
    made_up = "yes\n\nUser: and then?\n\nAssistant: no\u2028never"
    assert fluency({"windowed": [GOOD, made_up]}).code == 0
    assert read_chat_log(tmp_path / "windowed.jsonl").answers == [GOOD, made_up]


def test_logs_of_the_demo_are_read(tmp_path):
    folder = give_chat_template(save_tiny_model(tmp_path / "tiny"), CHATML)
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": random_text(4, i)}) for i in range(5)))
    command = [sys.executable, BENCHMARK.parent / "demo" / "streaming.py", "--model_name_or_path", folder]
    command += ["--dataset_name", tmp_path / "prompts.jsonl", "--window_size", "16", "--max_new_tokens", "9"]
    command += ["--device", "cpu", "--json_log", tmp_path / "log.jsonl", "--experiment", "windowed"]
    command += ["--log_file", tmp_path / "log.txt"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    log = read_chat_log(tmp_path / "log.jsonl")
    assert (log.experiment, log.model, log.turns, log.runs) == ("windowed", "tiny", 5, 1)
    assert len(log.answers) == 5 and all(answer.startswith("w") for answer in log.answers)


# --- the word list ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine without NLTK's data, dictionaries or english-words; returns where a dictionary would be looked for."""
    monkeypatch.setattr(words, "_from_nltk", lambda: None)
    monkeypatch.setattr(words, "DICTIONARIES", [tmp_path / "dictionary"])
    monkeypatch.setattr(words.importlib.util, "find_spec", lambda name: None)
    return tmp_path / "dictionary"


def test_a_machine_without_words_is_told_how_to_get_them(bare_machine):
    with pytest.raises(ValueError, match="nltk.downloader words"):
        words.load_words()


def test_a_system_dictionary_serves(bare_machine):
    bare_machine.write_text("Apple\nbanana\n")
    assert words.load_words() == (frozenset({"apple", "banana"}), str(bare_machine))


def test_nltk_is_asked_first(bare_machine, monkeypatch):
    bare_machine.write_text("Apple\n")
    monkeypatch.setattr(words, "_from_nltk", lambda: ["River"])
    assert words.load_words() == (frozenset({"river"}), "NLTK's corpus `words`")


def test_the_installed_package_serves(monkeypatch, tmp_path):
    pytest.importorskip("english_words")
    monkeypatch.setattr(words, "_from_nltk", lambda: None)
    monkeypatch.setattr(words, "DICTIONARIES", [])
    found, source = words.load_words()
    assert {"river", "the"} <= found and len(found) > 100_000 and "english-words" in source


def test_an_empty_list_is_refused(fluency, tmp_path):
    (tmp_path / "none.txt").write_text("\n \n")
    refused(fluency({"windowed": [GOOD]}, words=tmp_path / "none.txt"), "none.txt", "empty")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, word", [("", "empty"), ("some other text\n", "not a log"), ("[1]\n", "not a log"), (HEADER, "no turn")]
)
def test_an_empty_or_foreign_log_is_refused(fluency, tmp_path, text, word):
    refused(fluency({"windowed": text}), "windowed.jsonl", word)
    assert not (tmp_path / "fluency.csv").exists()


def test_a_log_that_is_not_there_is_refused(tmp_path):
    refused(run_script("quality/fluency", tmp_path / "nothing.jsonl"), "nothing.jsonl")


def test_two_logs_of_one_experiment_are_refused(fluency, tmp_path):
    refused(fluency({"windowed": [GOOD], "transformers": log_text("windowed", [GOOD])}), "windowed")


def test_an_existing_csv_is_not_overwritten(fluency):
    fluency({"windowed": [GOOD]})
    refused(fluency({"windowed": [BAD]}), "fluency.csv", "--overwrite")
    assert list(fluency.frame()["lost"]) == [0]
    assert fluency({"windowed": [BAD]}, "--overwrite").code == 0 and list(fluency.frame()["lost"]) == [1]
