"""benchmark/speed/server_load.py in miniature: its rows, and that it notices wrong answers."""

import csv

import pytest

from benchmark.speed import server_load
from support.benchmark_helpers import run_script


@pytest.fixture
def run(tmp_path):
    """Run the script in small; returns the values by what they are."""

    def run(*arguments):
        small = ["--clients", 3, "--seconds", 2, "--turns", 20, "--shape", "tiny", "--rounds", 1, "--steps", 4]
        done = run_script("speed/server_load", *small, "--threads", 1, "--output", tmp_path / "load.csv", *arguments)
        assert done.code == 0, done.errors
        with open(tmp_path / "load.csv", newline="") as file:
            return {(row["measure"], row["what"]): float(row["value"]) for row in csv.DictReader(file)}

    return run


def test_all_measures(run):
    found = run()
    assert found["clients", "turns"] > 12
    assert found["clients", "errors"] == found["clients", "wrong"] == 0
    fed = [found["turns", f"tokens fed per turn after the first, {which}"] for which in ("least", "most")]
    assert fed[0] == fed[1] == 17
    assert all(found["overhead", name] > 0 for name in ("server", "pool", "ratio"))


def test_wrong_answers_are_counted(run, monkeypatch):
    monkeypatch.setattr(server_load, "told", lambda *arguments: ("wrong", 0.0))
    found = run("--measures", "clients")
    assert found["clients", "wrong"] == found["clients", "turns"] > 0
