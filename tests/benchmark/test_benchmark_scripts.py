"""benchmark/quality/compare.py: the settings of the original; benchmark/scripts: what smollm2.sh calls."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.quality import compare
from support.benchmark_helpers import BENCHMARK, run_script

SCRIPTS = BENCHMARK / "scripts"
# name: tokens with sinks, plain Transformers and windowed, window; from the scripts of attention_sinks 0.4.0.
ORIGINAL = {
    "btlm": (16384, 16384, 16384, 2048),
    "falcon": (8192, 5000, 8192, 1024),
    "gptj": (8192, 8192, 8192, 1024),
    "llama": (8192, 7000, 2000, 1024),
    "mistral": (16384, 14000, 8192, 1024),
    "mpt": (8192, 2048, 4000, 1024),
    "pythia": (8192, 8192, 8192, 1024),
    "qwen": (8192, 8192, 8192, 1024),
    "stablelm_epoch": (8192, 8192, 8192, 1024),
    "yi": (8192, 8192, 8192, 1024),
}


# Notes its arguments and makes its last one, the log, where there is a folder for it.
STAND_IN = r"""#!/bin/sh
printf '%s\t' "$@" >> "$CALLS"
echo >> "$CALLS"
for last; do :; done
[ -d "${last%/*}" ] && : > "$last"
exit 0
"""


@pytest.fixture
def parse(monkeypatch):
    """From the arguments of a call of Python: the script's name and what its own parser makes of the others."""

    def parse(words):
        if words[0] != "-m":  # one of the demos, whose arguments are left as they are
            path, *arguments = words
            return Path(path).stem, arguments
        _, module, *arguments = words
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            return module.rpartition(".")[2], importlib.import_module(module).parse_args()[1]

    return parse


@pytest.fixture
def comparison(parse, monkeypatch):
    """Run compare.py, whose scripts end at once with an exit code; returns its own code and its calls, parsed."""

    def run(*arguments, exit_code=0):
        calls = []

        def start(command):
            calls.append(parse(command[1:]))
            return subprocess.CompletedProcess(command, exit_code)

        monkeypatch.setattr(compare.subprocess, "run", start)
        return run_script("quality/compare", *arguments).code, calls

    return run


@pytest.fixture
def calls(tmp_path, parse):
    """Run a script with a stand-in for Python that makes the log it is asked for; returns the calls, parsed."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(script, *arguments, **environment):
        environment = {**os.environ, "PYTHON": python, "CALLS": tmp_path / "calls", "OUTPUT": tmp_path, **environment}
        command = ["bash", SCRIPTS / script, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [parse(line.split("\t")[:-1]) for line in (tmp_path / "calls").read_text().splitlines()]

    return run


@pytest.mark.parametrize("name", ORIGINAL)
def test_an_architecture_runs_with_the_settings_of_the_original(name, comparison):
    code, (*runs, (plot, plot_args)) = comparison(name)
    assert code == 0
    assert [args.experiment for _, args in runs] == ["attention_sinks", "transformers", "windowed"]
    *tokens, window = ORIGINAL[name]
    assert [args.num_tokens for _, args in runs] == tokens
    for script, args in runs:
        assert script == "perplexity" and args.resume
        assert (args.window_size, args.attention_sink_size, args.chunk_size) == (window, 4, 1)
    assert plot == "plot_perplexity" and plot_args.log_perplexity_limit == 4


def test_a_comparison_passes_on_what_it_is_given(comparison):
    options = ("--model_name_or_path", "my/model", "--chunk_size", "512", "--dataset_name", "text.txt")
    runs = comparison("yi", "--device", "cpu", *options)[1][:3]
    for _, args in runs:
        assert (args.model_name_or_path, args.chunk_size, args.dataset_name) == ("my/model", 512, "text.txt")
        assert args.device == "cpu"


def test_a_comparison_ends_where_one_of_its_runs_fails(comparison):
    code, runs = comparison("llama", exit_code=3)
    assert code == 3 and len(runs) == 1


def test_smollm2_makes_every_committed_result(calls, tmp_path):
    made = calls("smollm2.sh", MODEL=str(BENCHMARK), DATASET="novel.txt", QUESTIONS="questions.jsonl")
    names = [name for name, _ in made]
    counts = {"perplexity": 13, "plot_perplexity": 4, "recall": 5, "plot_recall": 1, "attention_map": 1}
    counts |= {"streaming": 3, "fluency": 1, "endless_generation": 5, "million_steps": 1}
    assert {name: names.count(name) for name in names} == counts
    written = {f"{args.name}.csv" for name, args in made if name == "perplexity"}
    for option in ("output", "plot"):
        written |= {path.name for _, args in made if (path := getattr(args, option, None))}
    committed = BENCHMARK / "results" / "smollm2_135m"
    assert {path.name for path in committed.glob("*.[cp][sn][vg]")} - {"attention_map.csv"} <= written
    recalled = {f"{Path(args.output_dir).name}/{args.experiment}.csv" for name, args in made if name == "recall"}
    assert {f"{path.parent.name}/{path.name}" for path in committed.glob("recall*/*")} == recalled


def test_one_step_of_smollm2_can_be_asked_for(calls):
    assert {name for name, _ in calls("smollm2.sh", "recall", MODEL=str(BENCHMARK), DATASET="x")} == {
        "recall",
        "plot_recall",
    }


@pytest.mark.parametrize("last, made", [(10, ["million_steps", "attention_map"]), (20, ["attention_map"])])
def test_smollm2_makes_anew_a_million_steps_that_were_broken_off(last, made, calls, tmp_path):
    (tmp_path / "million_steps.csv").write_text(f"steps,largest_difference\n{last},1e-06\n")
    run = calls("smollm2.sh", "million", "attention", MODEL=str(BENCHMARK), DATASET="x", MILLION_STEPS="20")
    assert [name for name, _ in run] == made


def test_an_unknown_step_of_smollm2_is_refused():
    environment = {**os.environ, "PYTHON": "false", "MODEL": str(BENCHMARK), "DATASET": "x"}
    command = ["bash", SCRIPTS / "smollm2.sh", "recall", "nonsense"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "nonsense" in done.stderr


def test_the_readme_names_every_script_and_nothing_else():
    text = (BENCHMARK / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:bash |python )?(?:benchmark/)?((?:quality|speed|data|scripts)/\w+\.(?:py|sh))", text))
    files = {path.relative_to(BENCHMARK).as_posix(): path for path in BENCHMARK.glob("*/*.*")}
    assert named <= set(files)
    for name, path in files.items():
        started_by_hand = path.suffix == ".sh" or (path.suffix == ".py" and "__main__" in path.read_text("utf-8"))
        assert name in named or not started_by_hand, name
