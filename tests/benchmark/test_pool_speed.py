"""benchmark/speed/pool_speed.py and pool_joins.py in miniature: their rows, what they compare, and what they notice."""

import csv

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from benchmark.speed import pool_joins
from benchmark.speed.contenders import fill
from benchmark.speed.pools import TokenClock, ragged_cache, steps_within
from benchmark.speed.shapes import build_shape
from support.benchmark_helpers import refused, run_script

SMALL = ["--shape", "tiny", "--window_size", 16, "--threads", 1, "--rounds", 1, "--steps", 2]


@pytest.fixture
def run(tmp_path):
    """Run the script on the tiny shape; returns the rows of the CSV."""

    def run(*arguments):
        done = run_script("speed/pool_speed", *SMALL, "--output", tmp_path / "pool.csv", *arguments)
        assert done.code == 0, done.errors
        with open(tmp_path / "pool.csv", newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_steps_beside_a_loop_and_the_floors(run):
    rows = run("--measures", "steps", "--conversations", 1, 2)
    contenders = ("pool", "loop", "linear_layers", "cache read")
    assert [(row["contender"], row["conversations"]) for row in rows] == [(c, n) for n in "12" for c in contenders]
    assert all(0 < float(row["low"]) <= float(row["median"]) <= float(row["high"]) for row in rows)
    assert [float(row["vs_one"]) for row in rows[:4]] == [1] * 4
    of_two = {row["contender"]: row for row in rows[4:]}
    pool = of_two["pool"]
    assert float(pool["tokens_per_second"]) == pytest.approx(2000 / float(pool["median"]))
    assert float(pool["vs_loop"]) == pytest.approx(float(pool["median"]) / float(of_two["loop"]["median"]))
    assert float(pool["vs_one"]) == pytest.approx(2 * float(rows[0]["median"]) / float(pool["median"]))


def test_answers_beside_a_reader_and_sessions_that_wake(run):
    rows = run(
        *("--measures", "reading", "waking"),
        *("--conversations_beside", 2, "--chunk_sizes", 2, 4, "--reading", 4000),
    )
    names = [f"chunk {size}, {who}" for size in (2, 4) for who in ("no reader", "reader")]
    assert [row["contender"] for row in rows] == [*names, "pool"]
    alone, beside = rows[0], rows[1]
    assert float(beside["vs_no_reader"]) == pytest.approx(float(beside["median"]) / float(alone["median"]))
    assert float(beside["read_per_second"]) > 0 and not alone["read_per_second"]
    assert rows[-1]["unit"] == "ms" and int(rows[-1]["session_bytes"]) > 0


def test_only_steps_in_which_all_answer_are_counted():
    clock = TokenClock()
    clock.times = [0.0, 1.0, 3.0, 6.0, 10.0]
    assert steps_within(clock, 1.0, 6.0) == [2.0, 3.0]


def test_the_rows_of_a_loop_are_full_and_ragged():
    model = inject_attention_sinks(build_shape("tiny", "cpu", torch.float32), 4, 12)
    with torch.no_grad():
        cache = ragged_cache(fill(model, 20), model, 3)
    assert isinstance(cache, AttentionSinkKVCache) and cache.tokens_seen.tolist() == [20, 21, 22]


def test_joins_leave_no_memory_behind_and_change_no_answer(tmp_path):
    done = run_script(
        *("speed/pool_joins", "--joins", 100, "--rows", 4, "--threads", 1, "--growth", 1000),
        *("--output", tmp_path / "joins.csv"),
    )
    assert done.code == 0, done.errors
    with open(tmp_path / "joins.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["joins"]) for row in rows] == list(range(10, 101, 10))
    assert {row["answers_that_differ"] for row in rows} == {"0"} and all(int(row["rss_bytes"]) > 0 for row in rows)


def test_another_answer_and_growing_memory_are_noticed(monkeypatch):
    small = ("speed/pool_joins", "--joins", 50, "--threads", 1)
    assert run_script(*small, "--growth", -10000).code == 1
    right = pool_joins.answers_alone
    monkeypatch.setattr(pool_joins, "answers_alone", lambda model: [*right(model)[:-1], "another"])
    done = run_script(*small, "--growth", 1000)
    assert done.code == 1 and "1 answers differ" in done.output


def test_what_cannot_be_run_is_refused():
    refused(run_script("speed/pool_speed", "--window_size", 4), "--window_size 4")
    assert run_script("speed/pool_speed", "--conversations_beside", 0).code == 2
    assert run_script("speed/pool_joins", "--joins", 9).code == 2
