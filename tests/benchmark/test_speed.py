"""benchmark/speed: small runs of its scripts, their columns and what they compare."""

import csv
import json
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from attention_sinks import versions
from benchmark.lib.gguf_writer import write_llama
from benchmark.speed import frames
from benchmark.speed.contenders import Dense, StaticCompiled, by_columns, random_tokens
from benchmark.speed.shapes import build_shape
from support.benchmark_helpers import run_script
from support.helpers import assert_close

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


def test_weights_by_columns_and_a_shape_of_fewer_layers(run):
    """What they stand beside is measured for both kinds of weights, and the model's name says how large it is."""
    _, rows = run("--calls", "--by_columns", "--layers", 1, "--cache_dtypes", "int8")
    names = [row["contender"] for row in rows]
    assert {
        f"{each}, weights by columns" for each in ("attention_sinks", "attention_sinks, int8", "linear_layers")
    } <= {*names}
    assert {row["model"] for row in rows} == {"tiny, 1 layer"}
    done = run_script("speed/speed", "--layers", 1, "--model_name_or_path", "m", "--calls")
    assert done.code == 2 and "leave --model_name_or_path out" in done.errors


def test_weights_by_columns_are_the_same_weights():
    plain = build_shape("tiny", "cpu", torch.float32)
    moved, ids = by_columns(plain), random_tokens(plain, 9)
    assert moved.lm_head.weight.stride() != plain.lm_head.weight.stride()
    for name, weight in plain.named_parameters():
        assert torch.equal(moved.get_parameter(name), weight)
    assert_close(moved(ids).logits, plain(ids).logits)


LLAMA_CPP = """
import json, sys
GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1

class Llama:
    n_tokens = 0

    def __init__(self, model, **options):
        self.log = open(LOG, "a")
        self.note({"magic": open(model, "rb").read(4).decode(), **options})

    def n_vocab(self):
        return 256

    def eval(self, tokens):
        self.note([self.n_tokens, len(tokens)])
        self.n_tokens += len(tokens)

    def note(self, what):
        print(json.dumps(what), file=self.log, flush=True)
"""
"""Says what llama.cpp was asked to do."""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for an interpreter is a script of a shell")
def test_llama_cpp_steps_over_one_context_with_weights_and_cache_of_one_width(run, tmp_path):
    log, stub, python = tmp_path / "log", tmp_path / "llama_cpp.py", tmp_path / "python"
    stub.write_text(f"LOG = {str(log)!r}\n{LLAMA_CPP}")
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = sys.argv[2:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    python.chmod(0o755)
    _, rows = run("--llama_cpp", python, "--calls")
    times = {row["contender"]: float(row["median"]) for row in rows}
    assert times["llama.cpp, 32 bits"] > 0 and times["llama.cpp, 16 bits"] > 0
    notes = [json.loads(line) for line in log.read_text().splitlines()]
    made = [note for note in notes if isinstance(note, dict)]
    assert [(note["magic"], note["type_k"], note["type_v"]) for note in made] == [("GGUF", 0, 0), ("GGUF", 1, 1)]
    evals = [note for note in notes if isinstance(note, list)]
    assert evals.count([0, 24]) == 2, "the context is read once"
    assert evals.count([24, 1]) == len(evals) - 2 == 2 * 2 * 2, "rounds, steps and contenders"


def test_llama_cpp_has_one_row_and_plain_positions(tmp_path):
    small = ["--device", "cpu", "--llama_cpp", sys.executable, "--output", tmp_path / "speed.csv"]
    for arguments, word in (
        (["--shape", "tiny", "--batch_size", 2], "--batch_size"),
        (["--model_name_or_path", saved(tmp_path)], "rope_type"),
    ):
        done = run_script("speed/speed", *small, *arguments)
        assert done.code == 2 and word in done.errors


def saved(tmp_path):
    """A tiny model of positions that are not written."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    build_shape("tiny", "cpu", torch.float32, rope_parameters=rope).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 2e-2), ("bfloat16", 2e-1)])
def test_a_model_is_written_with_its_weights(tmp_path, tied, dtype, error):
    model = build_shape("tiny", "cpu", torch.float32, tie_word_embeddings=tied)
    write_llama(model, tmp_path / "model.gguf", dtype)
    again = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = random_tokens(model, 20)
    with torch.inference_mode():
        assert_close(again(ids).logits, model(ids).logits, error)


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
