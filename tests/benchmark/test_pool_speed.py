"""benchmark/speed/pool_speed.py in miniature."""

import csv

import pytest
import torch

from support.benchmark_helpers import refused, run_script
from support.pages import save_tiny_checkpoint

SMALL = ["--window_size", "24", "--threads", "1", "--rounds", "1", "--steps", "4"]


@pytest.fixture
def run(tmp_path):
    folder, threads = save_tiny_checkpoint(tmp_path / "tiny") or tmp_path / "tiny", torch.get_num_threads()

    def run(*arguments):
        path = tmp_path / "pool.csv"
        done = run_script("speed/pool_speed", "--model_name_or_path", folder, "--output", path, *SMALL, *arguments)
        assert done.code == 0, done.errors
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    yield run
    torch.set_num_threads(threads)


def test_pools_beside_loops_reading_and_waking(run):
    rows = run("--rows", "1", "3", "--chunk_sizes", "16", "--reading", "200")
    assert [(row["part"], row["way"], row["rows"]) for row in rows[:-1]] == [
        ("steps", "pool", "1"),
        ("steps", "loop", "1"),
        ("steps", "pool", "3"),
        ("steps", "loop", "3"),
        ("reading", "chunk_size 16", "8"),
    ]
    assert all(float(row["median_ms"]) > 0 for row in rows) and rows[-1]["part"] == "waking"
    assert float(rows[0]["times_one_row"]) == float(rows[1]["times_loop"]) == 1
    assert float(rows[4]["p95_ms"]) >= float(rows[4]["median_ms"]) and float(rows[4]["read_per_second"]) > 0


def test_joins_give_the_answers_alone(run):
    (row,) = run("--joins", "60")
    assert row["wrong"] == "0" and float(row["rss_mib"]) > 0


def test_what_cannot_be_run_is_refused():
    refused(run_script("speed/pool_speed", "--model_name_or_path", "no/such/model"), "no/such/model")
