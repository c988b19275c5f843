"""benchmark/quality/recall.py and its plot: what a stream asks, how answers are judged, what can still be found."""

import json

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.quality.streameval import Query, judge, line_stream, question_stream
from support.benchmark_helpers import WORDS, random_text, refused, run_script, save_tiny_model

S, WINDOW = 4, 400


def encode(text):
    return [ord(character) for character in text]


def decode(ids):
    return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recall(folder, tmp_path):
    def run(*options, **changes):
        named = {"model_name_or_path": folder, "num_tokens": 500, "window_size": 64, "output_dir": tmp_path / "out"}
        named |= {"device": "cpu", **changes}
        return run_script("quality/recall", *options, *(str(x) for k, v in named.items() for x in (f"--{k}", v)))

    run.frame = lambda name="attention_sinks": pd.read_csv(tmp_path / "out" / f"{name}.csv")
    return run


# --- the stream of lines ----------------------------------------------------------------------------------------------


@given(
    num_tokens=st.integers(500, 6_000),
    distances=st.lists(st.sampled_from([10, 20, 30, 50, 80]), min_size=1, unique=True),
    seed=st.integers(0, 9),
)
def test_every_answer_stands_where_it_was_said_and_is_asked_for_once(num_tokens, distances, seed):
    ids, queries = line_stream(encode, num_tokens, distances, seed=seed)
    assert len(ids) == num_tokens
    text = decode(ids)
    for query in queries:
        answer = decode(query.answer)
        said = query.start - query.distance_tokens
        assert text[query.start :].startswith(answer) and text[said:].startswith(answer)
        name = text[: query.start].rpartition("\n")[2]
        assert text.count(f"\n{name}{answer}") == 2, "the line and its query, nothing else to copy from"
        assert query.distance_lines // 10 * 10 in distances
    starts = [query.start - query.distance_tokens for query in queries]
    assert len(set(starts)) == len(starts)


def test_a_query_comes_every_ten_lines_for_twenty_lines_back():
    _, queries = line_stream(encode, 20_000, [20])
    assert {query.distance_lines for query in queries} == {20}
    gaps = {b.start - a.start for a, b in zip(queries, queries[1:], strict=False)}
    assert max(gaps) < 2 * min(gaps)


@pytest.mark.parametrize("distances", [[15], [5], [20, 20], list(range(10, 120, 10))])
def test_distances_that_would_ask_twice_are_refused(distances):
    with pytest.raises(ValueError, match="--distances"):
        line_stream(encode, 1_000, distances)


# --- multiple choice --------------------------------------------------------------------------------------------------

QUESTION = {"question": "Which?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "B"}


def last_character(text):
    """An encoder whose tokens of labels differ."""
    return [ord(character) for character in text.strip() or text]


def test_questions_are_followed_by_their_answers():
    ids, queries = question_stream(last_character, 1_000, [QUESTION] * 3)
    assert decode(ids).startswith("Question: Which?\nA. this\nB. that\nAnswer:B")
    for query in queries:
        assert decode(ids[query.start : query.start + 1]) == "B" and query.candidates == (ord("A"), ord("B"))
    assert len(queries) == 3


@pytest.mark.parametrize(
    "row, word",
    [
        ({"question": "x"}, "choices"),
        ({**QUESTION, "choices": ["this", "that"]}, "choices"),
        ({**QUESTION, "answerKey": "C"}, "'C'"),
        ({**QUESTION, "choices": {"text": ["this"], "label": ["A", "B"]}}, "labels"),
    ],
)
def test_questions_of_another_form_are_refused(row, word):
    with pytest.raises(ValueError, match=word):
        question_stream(last_character, 1_000, [row])


# --- judging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_answers_are_judged_token_for_token_wherever_the_pieces_end(piece):
    stream = [5, 1, 2, 3, 7, 1, 2, 4, 9]
    logits = torch.zeros(len(stream), 10)
    for position, guess in enumerate([1, 2, 3, 7, 1, 2, 0, 9, 0]):  # the answer 4 is not foreseen
        logits[position, guess] = 5.0
    queries = [Query(1, (1, 2, 3)), Query(5, (1, 2, 4)), Query(7, (4,), candidates=(3, 4))]
    pieces = ((i, logits[i : i + piece]) for i in range(0, len(stream), piece))
    judged = judge(queries, pieces)
    assert [right for right, _ in judged] == [True, False, True]
    expected = torch.nn.functional.cross_entropy(logits[4:7], torch.tensor([1, 2, 4])).item()
    assert judged[1][1] == pytest.approx(expected, abs=1e-5)


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_calls_of_any_length_give_the_same_answers(recall):
    assert recall(chunk_size=500).code == 0
    whole = recall.frame()
    recall("--overwrite", chunk_size=7)
    assert (whole["nll"] - recall.frame()["nll"]).abs().max() <= 2e-4
    assert list(whole) == ["stream_tokens", "distance_lines", "distance_tokens", "correct", "nll"]


def test_questions_come_from_a_file(recall, tmp_path):
    choices = {"text": [random_text(2), random_text(3)], "label": WORDS[5:7]}
    row = {"question": random_text(5), "choices": choices, "answerKey": "w6"}
    (tmp_path / "questions.jsonl").write_text("\n".join([json.dumps(row)] * 20))
    assert recall(questions=tmp_path / "questions.jsonl").code == 0
    assert len(recall.frame()) == 20 and set(recall.frame()["distance_tokens"]) == {0}


def test_runs_are_drawn(tmp_path):
    for number, name in enumerate(("attention_sinks", "windowed", "transformers")):
        values = {"stream_tokens": range(100, 5_000, 100), "distance_lines": 20, "distance_tokens": 200}
        pd.DataFrame({**values, "correct": number % 2, "nll": 1.0}).to_csv(tmp_path / f"{name}.csv", index=False)
    output = tmp_path / "recall.png"
    done = run_script("quality/plot_recall", "--output_dir", tmp_path, "--window_size", 1024, "--output", output)
    assert done.code == 0 and output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_tokens": 30}, ["--num_tokens 30"]),
        ({"distances": 15}, ["--distances 15"]),
        ({"questions": "no_such.jsonl"}, ["no_such.jsonl"]),
        ({"window_size": 4}, ["--window_size 4"]),
    ],
)
def test_what_cannot_be_asked_is_refused(recall, changes, words):
    refused(recall(**changes), *words)


def test_an_existing_file_is_not_overwritten(recall):
    recall()
    refused(recall(), "--overwrite")


def test_a_foreign_csv_is_not_drawn(tmp_path):
    refused(run_script("quality/plot_recall", "--output_dir", tmp_path, "--output", tmp_path / "x.png"), "recall.py")
    (tmp_path / "windowed.csv").write_text("input_length,nll\n1,2\n")
    refused(run_script("quality/plot_recall", "--output_dir", tmp_path, "--output", tmp_path / "x.png"), "correct")
