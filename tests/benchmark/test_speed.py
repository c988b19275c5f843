"""benchmark/speed: small runs of its scripts, their columns and what they compare."""

import csv

import pytest
import torch

from attention_sinks import versions
from benchmark.speed import frames
from benchmark.speed.contenders import Dense, StaticCompiled, random_tokens
from benchmark.speed.shapes import build_shape
from support.benchmark_helpers import run_script

SMALL = ["--window_size", "24", "--threads", "1"]


@pytest.fixture
def run(tmp_path, restored_threads):
    """Run on the tiny shape; returns what was printed and the rows of the CSV."""

    def run(*arguments):
        path = tmp_path / "speed.csv"
        small = ["--shape", "tiny", "--device", "cpu", "--rounds", 1, "--steps", 2, "--call_rounds", 1, *SMALL]
        done = run_script("speed/speed", *small, "--output", path, *arguments)
        assert done.code == 0, done.errors
        with open(path, newline="") as file:
            return done.output, list(csv.DictReader(file))

    return run


def test_steps_and_calls_beside_plain_transformers(run):
    printed, rows = run("--calls", "64", "128", "--plain_up_to", "100", "--batch_size", "2")
    measured = [(row["measure"], row["contender"]) for row in rows]
    steps = ["attention_sinks", "transformers", "linear_layers", "memory floor"]
    calls = [("call of 64", "attention_sinks"), ("call of 64", "transformers"), ("call of 128", "attention_sinks")]
    assert measured == [("single-token step", name) for name in steps] + calls
    assert all(float(row["low"]) <= float(row["median"]) <= float(row["high"]) for row in rows)
    assert {row["batch_size"] for row in rows} == {"2"} and {row["dtype"] for row in rows} == {"float32"}
    plain = next(row for row in rows if row["contender"] == "transformers")
    assert float(plain["vs_transformers"]) == 1 and not rows[-1]["vs_transformers"]
    assert "call of 128" in printed


def test_the_cache_of_a_plain_contender_stays_at_its_length():
    model = build_shape("tiny", "cpu", torch.float32)
    with torch.inference_mode():
        for contender in (Dense(model, 16, 2), StaticCompiled(model, 16, 2)):
            contender.forward = model.forward  # as it is, for a test
            for _ in range(3):
                contender.prepare()
                contender.step(random_tokens(model, 1, 2))
            assert int(contender.cache.get_seq_length()) == 17


def test_steps_inside_generate(restored_threads):
    done = run_script("speed/generate_speed", "--lengths", 40, 80, "--steps", 4, "--rounds", 1, "--rows", 2, *SMALL)
    assert done.code == 0, done.errors
    assert "after        40 tokens" in done.output and "a batch of 2" in done.output


def test_overhead_is_a_ratio_to_plain_transformers(restored_threads, tmp_path):
    options = ("--rounds", 1, "--steps", 3, "--threads", 1, "--layers", 2, "--output", tmp_path / "overhead.csv")
    done = run_script("speed/overhead", *options)
    assert done.code == 0 and "ratio" in done.output, done.errors
    with open(tmp_path / "overhead.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [(row["measure"], row["contender"]) for row in rows]
    assert measured == [(m, c) for m in ("forward", "generate") for c in ("attention_sinks", "transformers")]
    assert all(float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"]) for row in rows)
    assert all(float(row["ratio"]) > 0 for row in rows) and float(rows[1]["ratio"]) == 1
    assert {(row["rounds"], row["steps"], row["layers"]) for row in rows} == {("1", "3", "2")}


@pytest.mark.skipif(not versions.BOTH_NAMES_BY_ITSELF, reason="older outputs need frames to answer to both names")
def test_a_token_takes_a_short_path():
    """What a reader must follow from `generate` to attention and back; comprehensions count as frames until 3.12."""
    tokens = [frames.counts(token) for token in frames.count_frames(layers=2)]
    typical = sorted(tokens, key=lambda count: count["frames"])[len(tokens) // 2]
    assert typical["frames"] <= 90 and typical["files"] <= 12


def test_frames_of_this_package_are_counted_the_same_in_every_run():
    first, second = (frames.count_frames(layers=1) for _ in range(2))
    assert first == second and len(first) == frames.TOKENS
    for count in map(frames.counts, first):
        assert list(count) == ["frames", "functions", "files", "changes of file"]
        assert all(isinstance(value, int) and value > 0 for value in count.values())
        assert count["frames"] >= count["functions"] >= count["files"]
        assert count["frames"] > count["changes of file"]


def test_a_typical_token_is_shown_function_by_function():
    done = run_script("speed/frames", "--layers", 1, "--verbose")
    assert done.code == 0, done.errors
    head, _, functions = done.output.partition("frames of a typical token\n")
    total = next(int(line.split()[1]) for line in head.splitlines() if line.startswith("frames "))
    assert sum(int(line.split()[0]) for line in functions.splitlines()) == total
    assert "cache/cache.py" in functions
