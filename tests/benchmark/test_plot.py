"""benchmark/quality/plot_perplexity.py draws what perplexity.py and version 0.4.0 wrote, and refuses the rest."""

import math

import matplotlib
import pandas as pd
import pytest

from benchmark.quality import plot_perplexity
from support.benchmark_helpers import refused, run_script

ORIGINAL_COLUMNS = ["input_length", "nll", "ppl", "overall_ppl", "cuda_vram_allocated", "latency"]


@pytest.fixture(autouse=True)
def no_display():
    matplotlib.use("Agg")


@pytest.fixture
def runs(tmp_path):
    """Runs of three experiments; dense attention gets ever worse."""
    for number, name in enumerate(("transformers", "attention_sinks", "windowed")):
        length = range(1, 1001)
        nll = [3 + number / 2 + (n / 100 if name == "transformers" else 0) for n in length]
        values = {"input_length": length, "nll": nll, "ppl": map(math.exp, nll), "overall_ppl": map(math.exp, nll)}
        values |= {"cuda_vram_allocated": 0.0, "latency": 0.05, "cache_bytes": 2**20 * (number + 1), "rss": 1.5}
        pd.DataFrame(values).to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def drawn(folder, monkeypatch, *options):
    """The figure that the script would save."""
    figures = []
    original = plot_perplexity.draw
    monkeypatch.setattr(plot_perplexity, "draw", lambda *a: figures.append(original(*a)) or figures[-1])
    done = run_script("quality/plot_perplexity", "--output_dir", folder, "--output", folder / "figure.png", *options)
    assert done.code == 0, done.errors
    return figures[0]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_writes_a_picture_without_a_title(runs, suffix):
    output = runs / "new" / f"figure.{suffix}"
    assert run_script("quality/plot_perplexity", "--output_dir", runs, "--output", output).code == 0
    assert output.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_every_feature_has_a_panel_and_every_experiment_its_own_colour(runs, monkeypatch):
    features = ["perplexity", "nll", "cache", "vram", "latency"]
    figure = drawn(runs, monkeypatch, "--features", *features, "--title", "a title")
    assert len(figure.axes) == 5 and figure.get_suptitle() == "a title"
    for panel in figure.axes:
        assert len({line.get_color() for line in panel.lines}) == 3
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["attention sinks", "window attention", "dense attention (Transformers)"]


def test_memory_is_that_of_the_process_where_there_is_no_gpu(runs, monkeypatch):
    figure = drawn(runs, monkeypatch, "--features", "vram")
    assert set(figure.axes[0].lines[0].get_ydata()) == {1.5}


def test_colours_follow_the_experiment_not_the_files_present(runs, monkeypatch):
    every = drawn(runs, monkeypatch).axes[0].lines
    (runs / "attention_sinks.csv").rename(runs / "attention_sinks_256.csv")
    (runs / "transformers.csv").unlink()
    fewer = drawn(runs, monkeypatch).axes[0].lines
    assert [line.get_color() for line in fewer] == [line.get_color() for line in every[:2]]
    assert fewer[0].get_label() == "attention sinks (256)"


def test_runs_are_chosen_by_name(runs, monkeypatch):
    figure = drawn(runs, monkeypatch, "--runs", "windowed")
    assert [line.get_label() for line in figure.axes[0].lines] == ["window attention"]


def test_the_start_is_skipped_and_the_top_is_cut(runs, monkeypatch):
    panel = drawn(runs, monkeypatch, "--skip_first", "200", "--log_perplexity_limit", "4").axes[0]
    assert all(line.get_xdata()[0] == 201 for line in panel.lines)
    assert panel.get_ylim()[1] == 4


def test_files_of_the_original_are_drawn(runs, monkeypatch):
    for path in runs.glob("*.csv"):
        pd.read_csv(path)[ORIGINAL_COLUMNS].to_csv(path, index=False)
    assert len(drawn(runs, monkeypatch, "--features", "perplexity", "vram", "latency").axes) == 3


def test_without_a_display_an_output_file_is_asked_for(runs):
    refused(run_script("quality/plot_perplexity", "--output_dir", runs), "--output")


@pytest.mark.parametrize(
    "content, words",
    [("step,loss\n1,2\n", ["nll", "perplexity.py"]), ("", ["foreign.csv"]), ("input_length,nll\n1,2,3\n4,5,6,7,8", [])],
)
def test_a_foreign_csv_is_refused(runs, content, words):
    (runs / "foreign.csv").write_text(content)
    refused(
        run_script("quality/plot_perplexity", "--output_dir", runs, "--output", runs / "x.png"), "foreign.csv", *words
    )
    assert not (runs / "x.png").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--output_dir", "no/such/folder"], ["no/such/folder", "perplexity.py"]),
        (["--runs", "recompute"], ["recompute.csv"]),
        (["--skip_first", "1000"], ["--skip_first 1000"]),
        (["--output", "figure.docx"], ["docx"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(runs, options, words):
    refused(run_script("quality/plot_perplexity", "--output_dir", runs, "--output", runs / "x.png", *options), *words)


def test_a_file_without_cache_sizes_has_no_cache_panel(runs):
    for path in runs.glob("*.csv"):
        pd.read_csv(path)[ORIGINAL_COLUMNS].to_csv(path, index=False)
    refused(
        run_script("quality/plot_perplexity", "--output_dir", runs, "--output", runs / "x.png", "--features", "cache"),
        "cache_bytes",
    )
