"""benchmark/quality/million_steps.py in miniature: every check agrees with the reference, and would notice if not."""

import pandas as pd
import pytest

from benchmark.quality import million_steps
from support.benchmark_helpers import refused, run_script


@pytest.fixture
def steps(tmp_path):
    def run(*options):
        return run_script("quality/million_steps", "--output", tmp_path / "steps.csv", "--check_every", "100", *options)

    run.csv = tmp_path / "steps.csv"
    return run


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_every_check_agrees(steps, rope):
    done = steps("--steps", "650", "--rope", rope)
    assert done.code == 0 and "650 steps" in done.output
    frame = pd.read_csv(steps.csv)
    assert list(frame["steps"]) == [100, 200, 300, 400, 500, 600, 650]
    assert frame["largest_difference"].max() < 2e-4 and frame["cache_bytes"].nunique() == 1


def test_short_streams_are_checked_too(steps):
    assert steps("--steps", "40", "--check_every", "1").code == 0
    assert len(pd.read_csv(steps.csv)) == 40


@pytest.mark.parametrize("mistake", [{"query_offset": 1}, {"frozen_sinks": True}])
def test_a_mistake_is_noticed(steps, monkeypatch, mistake):
    right = million_steps.naive_logits
    monkeypatch.setattr(million_steps, "naive_logits", lambda *arguments: right(*arguments, **mistake))
    assert steps("--steps", "200").code == 1


def test_what_cannot_be_run_is_refused(steps):
    refused(steps("--steps", "10", "--window_size", "4"), "--window_size 4")
    assert steps("--steps", "10").code == 0
    refused(steps("--steps", "10"), "--overwrite")
