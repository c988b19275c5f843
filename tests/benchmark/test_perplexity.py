"""benchmark/quality/perplexity.py: faithful scores, files valid at every moment, runs that go on, clear refusals."""

import json
import math
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from references.naive import naive_logits
from support.benchmark_helpers import BENCHMARK, random_text, refused, run_script, save_tiny_model
from support.helpers import random_ids, tiny_llama

ORIGINAL_COLUMNS = ["input_length", "nll", "ppl", "overall_ppl", "cuda_vram_allocated", "latency"]
S, WINDOW, TOKENS = 4, 16, 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(random_text(TOKENS))
    return path


@pytest.fixture
def perplexity(folder, text, tmp_path):
    def run(*options, **changes):
        named = {
            "model_name_or_path": folder,
            "dataset_name": text,
            "num_tokens": 200,
            "window_size": WINDOW,
            "attention_sink_size": S,
            "output_dir": tmp_path / "out",
            "chunk_size": 64,
            "device": "cpu",
            **changes,
        }
        return run_script("quality/perplexity", *options, *(str(x) for k, v in named.items() for x in (f"--{k}", v)))

    run.csv = lambda name="attention_sinks": tmp_path / "out" / f"{name}.csv"
    run.nlls = lambda name="attention_sinks": pd.read_csv(run.csv(name))["nll"]
    return run


def same(a, b, tolerance=1e-4):
    return len(a) == len(b) and (a.reset_index(drop=True) - b.reset_index(drop=True)).abs().max() <= tolerance


def test_token_by_token_and_long_calls_give_the_same_nll_per_token(perplexity):
    perplexity(chunk_size=1, num_tokens=TOKENS)
    by_token = perplexity.nlls()
    perplexity("--overwrite", chunk_size=512, num_tokens=TOKENS)
    assert len(by_token) == TOKENS - 1 and same(by_token, perplexity.nlls())


@pytest.mark.parametrize("experiment, sinks", [("attention_sinks", S), ("windowed", 0)])
def test_nll_is_what_the_naive_reference_says(perplexity, experiment, sinks):
    perplexity(experiment=experiment)
    ids = random_ids(TOKENS)[:200]
    logits = naive_logits(tiny_llama(), ids, sinks, WINDOW - sinks)
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert same(perplexity.nlls(experiment), pd.Series(expected.numpy(), dtype=float))


def test_dense_attention_is_plain_transformers(perplexity):
    perplexity(experiment="transformers")
    ids = random_ids(TOKENS)[:200]
    with torch.no_grad():
        logits = tiny_llama()(ids[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
    assert same(perplexity.nlls("transformers"), pd.Series(expected.numpy(), dtype=float))


@pytest.mark.parametrize("chunk_size", [1, 50])
def test_recomputation_reads_the_window_afresh_for_every_token(perplexity, chunk_size):
    perplexity(experiment="recompute", chunk_size=chunk_size, num_tokens=60)
    ids, model = random_ids(TOKENS), tiny_llama()
    for position in (0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 58):
        with torch.no_grad():
            logits = model(ids[None, max(0, position - WINDOW) : position + 1]).logits[0, -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[position + 1])
        assert perplexity.nlls("recompute")[position] == pytest.approx(expected.item(), abs=1e-4)


def test_columns_begin_with_those_of_the_original_and_add_up(perplexity):
    perplexity()
    frame = pd.read_csv(perplexity.csv())
    assert list(frame) == [*ORIGINAL_COLUMNS, "cache_bytes", "rss"]
    assert list(frame["input_length"]) == list(range(1, 200))
    assert frame["ppl"].iloc[7] == pytest.approx(math.exp(frame["nll"].iloc[7]))
    assert frame["overall_ppl"].iloc[-1] == pytest.approx(math.exp(frame["nll"].mean()))
    assert frame["cache_bytes"].nunique() == 1 and (frame["latency"] > 0).all() and (frame["rss"] > 0).all()


def test_rows_of_many_tokens_are_means(perplexity):
    perplexity()
    every = perplexity.nlls()
    perplexity(report_every=16, name="thin")
    thin = pd.read_csv(perplexity.csv("thin"))
    assert list(thin["input_length"]) == [*range(16, 199, 16), 199]
    assert thin["nll"].iloc[0] == pytest.approx(every[:16].mean())
    assert thin["nll"].iloc[-1] == pytest.approx(every[192:].mean())
    assert thin["overall_ppl"].iloc[-1] == pytest.approx(math.exp(every.mean()))


@pytest.mark.parametrize("experiment", ["attention_sinks", "transformers", "recompute"])
@pytest.mark.parametrize("report_every", [1, 16])
def test_a_run_goes_on_where_it_ended(perplexity, experiment, report_every):
    options = {"experiment": experiment, "report_every": report_every}
    perplexity(name="whole", num_tokens=150, **options)
    for tokens in (70, 71, 150):
        assert perplexity("--resume", num_tokens=tokens, **options).code == 0
    whole, parts = pd.read_csv(perplexity.csv("whole")), pd.read_csv(perplexity.csv(experiment))
    assert same(whole["nll"], parts["nll"]) and same(whole["overall_ppl"] / 100, parts["overall_ppl"] / 100)
    assert list(whole["input_length"]) == list(parts["input_length"])


def test_a_finished_run_is_left_alone(perplexity):
    perplexity()
    before = perplexity.csv().read_bytes()
    assert "complete" in perplexity("--resume").output
    assert perplexity.csv().read_bytes() == before


def test_a_torn_last_line_is_dropped(perplexity):
    perplexity()
    whole = perplexity.csv().read_text()
    perplexity.csv().write_text(whole[: len(whole) // 2].rstrip("\n"))
    assert perplexity("--resume").code == 0
    assert same(perplexity.nlls(), pd.read_csv(pd.io.common.StringIO(whole))["nll"])


def test_killed_at_any_moment_the_file_is_valid(folder, tmp_path):
    options = ["--model_name_or_path", folder, "--dataset_name", "python-docs", "--num_tokens", "50000"]
    options += ["--window_size", "16", "--device", "cpu", "--output_dir", tmp_path]
    process = subprocess.Popen(
        [sys.executable, BENCHMARK / "quality" / "perplexity.py", *options], stderr=subprocess.DEVNULL
    )
    try:
        csv, end = tmp_path / "attention_sinks.csv", time.monotonic() + 100
        while not (csv.exists() and csv.stat().st_size > 5_000):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    frame = pd.read_csv(csv)
    assert list(frame["input_length"]) == list(range(1, len(frame) + 1)) and not frame.isna().any().any()


def test_an_interrupt_says_how_to_go_on(perplexity, monkeypatch):
    from benchmark.quality import perplexity as script

    def interrupted(*arguments):
        yield from list(original(*arguments))[:2]
        raise KeyboardInterrupt

    original = script.score
    monkeypatch.setattr(script, "score", interrupted)
    run = perplexity()
    assert run.code == 130 and "--resume" in run.errors
    assert len(perplexity.nlls()) == 128
    monkeypatch.setattr(script, "score", original)
    assert perplexity("--resume").code == 0 and len(perplexity.nlls()) == 199


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_files_and_folders_are_texts(perplexity, tmp_path, suffix, as_folder):
    path = tmp_path / "data" / f"test{suffix}"
    path.parent.mkdir()
    frame = pd.DataFrame({"text": [random_text(TOKENS)]})
    if suffix == ".txt":
        path.write_text(frame["text"][0])
    else:
        frame.to_json(path, orient="records", lines=True) if suffix == ".jsonl" else frame.to_parquet(path)
    perplexity()
    perplexity(name="other", dataset_name=path.parent if as_folder else path)
    assert same(perplexity.nlls(), perplexity.nlls("other"))


def test_several_books_are_one_text(perplexity, tmp_path):
    words = random_text(200).split()
    books = [{"text": " ".join(words[:90])}, {"text": " ".join(words[90:])}]
    path = tmp_path / "books.jsonl"
    path.write_text("\n".join(map(json.dumps, books)))
    perplexity(dataset_name=path, num_samples=2)
    perplexity(name="whole")
    assert same(perplexity.nlls(), perplexity.nlls("whole"))


# --- refusals: one line, exit code 2, nothing overwritten -----------------------------------------------------------


def test_an_existing_file_is_not_overwritten(perplexity):
    perplexity()
    before = perplexity.csv().read_bytes()
    refused(perplexity(num_tokens=50), perplexity.csv(), "--overwrite", "--resume")
    assert perplexity.csv().read_bytes() == before
    assert perplexity("--overwrite", num_tokens=50).code == 0 and len(perplexity.nlls()) == 49


def test_another_run_is_not_gone_on_with(perplexity):
    perplexity()
    before = perplexity.csv().read_bytes()
    refused(perplexity("--resume", window_size=20, num_tokens=300), "window_size=16", "20")
    perplexity.csv().with_suffix(".json").unlink()
    refused(perplexity("--resume", num_tokens=300), "experiment=None")
    assert perplexity.csv().read_bytes() == before


def test_a_file_of_another_schema_is_not_gone_on_with(perplexity):
    perplexity.csv().parent.mkdir()
    perplexity.csv().write_text("step,loss\n1,2.0\n")
    refused(perplexity("--resume"), "header", perplexity.csv())
    assert perplexity.csv().read_text() == "step,loss\n1,2.0\n"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_tokens": TOKENS + 1}, ["--num_tokens 701", "700 tokens"]),
        ({"num_tokens": 1}, ["--num_tokens"]),
        ({"attention_sink_size": 16}, ["--attention_sink_size 16", "--window_size 16"]),
        ({"attention_sink_size": -1}, ["--attention_sink_size -1"]),
        ({"dataset_name": "nobody/has-this"}, ["nobody/has-this", "python-docs"]),
        ({"dataset_name": "no_such_file.txt"}, ["no_such_file.txt", "python-docs"]),
        ({"data_column": "story"}, ["story", "text"]),
        ({"model_name_or_path": "no/such-model"}, ["no/such-model"]),
    ],
)
def test_what_cannot_be_run_is_refused(perplexity, changes, words):
    refused(perplexity(**changes), *words)
    assert not perplexity.csv().exists()


def test_an_unknown_split_of_a_folder_is_refused(perplexity, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"text": random_text(300)}))
    refused(perplexity(dataset_name=tmp_path / "data", split="test"), "'test'", "train")
    assert perplexity(dataset_name=tmp_path / "data", split="train").code == 0


def test_an_overwrite_that_fails_leaves_the_old_file(perplexity):
    perplexity()
    before = perplexity.csv().read_bytes()
    refused(perplexity("--overwrite", num_tokens=TOKENS + 1))
    assert perplexity.csv().read_bytes() == before
