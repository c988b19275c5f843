"""benchmark/speed/speed.py: one small run, its columns and what it compares."""

import csv

import pytest
import torch

from benchmark.speed.contenders import Dense, StaticCompiled, random_tokens
from benchmark.speed.shapes import build_shape
from benchmark_helpers import run_script


@pytest.fixture
def run(tmp_path):
    """Run on the tiny shape; returns what was printed and the rows of the CSV."""

    def run(*arguments):
        path = tmp_path / "speed.csv"
        small = [
            "--shape",
            "tiny",
            "--device",
            "cpu",
            "--rounds",
            "1",
            "--steps",
            "2",
            "--call_rounds",
            "1",
            "--window_size",
            "24",
            "--threads",
            "1",
        ]
        done = run_script("speed/speed", *small, "--output", path, *arguments)
        assert done.code == 0, done.errors
        with open(path, newline="") as file:
            return done.output, list(csv.DictReader(file))

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


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
