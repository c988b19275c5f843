"""`attention-sinks check`: what it says, how it ends, and what it leaves alone."""

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import gguf
import pytest
from typer.testing import CliRunner

import attention_sinks
from attention_sinks.command.app import app
from attention_sinks.report import memory
from support.gguf_files import write_gguf
from support.helpers import tiny_config, tiny_llama
from support.toy_tokenizers import byte_tokenizer, save_chat_model

SCREEN = 24
"""Lines of a terminal as it is opened."""


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def refuses(arguments, *words):
    """Exit code 2, one line that says why, and nothing on stdout."""
    result = run("check", *arguments)
    assert result.code == 2 and result.out == "", result
    assert result.err.startswith("attention-sinks check: error: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, result.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def config_folder(tmp_path):
    """Makes a folder with nothing but a config."""

    def make(config):
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return tmp_path

    return make


# ---- what it says


def test_a_folder(folder):
    before = sorted(folder.iterdir())
    result = run("check", folder)
    assert result.code == 0 and result.err == ""
    for words in (f"{folder} streams.", "rotary (halves)", "2 of 2 keep sinks and window", "eager, sdpa", "streams"):
        assert words in result.out.replace("\n", " "), result.out
    assert "\x1b" not in result.out
    assert sorted(folder.iterdir()) == before


def test_json_says_what_a_cache_then_takes(folder):
    result = run("check", folder, "--json", "--sinks", 2, "--window", 7, "--window", 9)
    said = json.loads(result.out)
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(
        folder, attention_sink_size=2, attention_sink_window_size=7
    )
    cache = attention_sinks.AttentionSinkKVCache(model)
    model(model.dummy_inputs["input_ids"][:1], cache=cache, use_cache=True)
    assert said["bytes_per_conversation"]["float32"]["7"] == cache.nbytes
    assert list(said["bytes_per_conversation"]["bfloat16"]) == ["7", "9"]
    assert said["streams"] and said["chat_problem"] is None and said["source"]["gguf_file"] is None
    assert said["parameters"] == model.num_parameters()


def test_the_line_that_it_prints_loads_the_model(folder):
    line = json.loads(run("check", folder, "--json", "--sinks", 2).out)["load"]
    model = eval(line, {"AutoModelForCausalLM": attention_sinks.AutoModelForCausalLM})
    settings = attention_sinks.AttentionSinkKVCache(model).settings
    assert settings.sink_size == 2 and f"attention_sink_window_size={settings.window_size}" in line


def test_the_command_that_it_prints_chats(tmp_path):
    folder = save_chat_model(tmp_path / "my model")
    assert f"Chat with it by\n  attention-sinks chat '{folder}' --sinks 2\n" in run("check", folder, "--sinks", 2).out
    command = json.loads(run("check", folder, "--json").out)["chat"]
    program_name, *arguments = shlex.split(command)
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "2"], input="w1\n")
    assert program_name == app.info.name and result.exit_code == 0 and "tokens seen" in result.stderr


def test_a_gguf_file(tmp_path):
    model = tiny_llama()
    write_gguf(model, tmp_path / "tiny.gguf")
    said = json.loads(run("check", tmp_path / "tiny.gguf", "--json").out)
    assert said["parameters"] == model.num_parameters() and said["model_type"] == "llama"
    assert f"from_pretrained({str(tmp_path / 'tiny.gguf')!r}" in said["load"]
    assert "no tokenizer can be read" in said["chat_problem"]


def test_a_chat_template_that_cannot_stream_is_said_and_not_fatal(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    tokenizer.save_pretrained(tmp_path)
    result = run("check", tmp_path)
    assert result.code == 0 and "does not stream: " in result.out and "not today" in result.out
    assert "Load it with" in result.out and "attention-sinks chat" not in result.out


def test_no_tokenizer_at_all_is_said_and_not_fatal(config_folder):
    result = run("check", config_folder(tiny_config().to_dict()))
    assert result.code == 0 and "no tokenizer can be read" in result.out


def test_run_compares_with_plain_transformers(folder):
    result = run("check", folder, "--run")
    assert result.code == 0 and "streams right with transformers" in result.out
    assert json.loads(run("check", folder, "--run", "--json").out)["verification"]["agrees"] is True


def test_run_finds_a_model_that_does_not_stream_right(folder):
    with mock.patch("attention_sinks.verification.EXACT", 0.0):
        result = run("check", folder, "--run", "--dtype", "float32")
    assert result.code == 1 and "does not stream right" in result.out


# ---- bad input


def test_what_does_not_exist(tmp_path):
    refuses([tmp_path / "nothing"], "does not exist", "give a model's folder")
    refuses([tmp_path / "nothing.gguf"], "there is no GGUF file")
    refuses(["./nothing"], "does not exist")


def test_a_folder_without_a_config(tmp_path):
    refuses([tmp_path], "without config.json")
    (tmp_path / "a.gguf").touch()
    refuses([tmp_path], "without config.json", "'a.gguf'")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").touch()
    refuses([tmp_path / "notes.txt"], "neither a folder nor a GGUF file")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": 8}, ["has no model_type"]),
        ("{", ["config.json", "repair it"]),
        ({"model_type": "lama"}, ["'lama' is not supported", "Did you mean 'llama'"]),
        ({"model_type": "gpt2"}, ["absolute positions", "'gptj' is nearest by name"]),
        ({"model_type": "t5"}, ["encoder-decoder"]),
        ({"model_type": "llama", "hidden_size": "wide"}, ["config.json", "hidden_size"]),
        ({"model_type": "llama", "vocab_size": -1}, ["no model can be made of its config"]),
        ({"model_type": "deepseek_v2", "num_hidden_layers": 2}, ["cannot be called", "repair the config"]),
        ({"model_type": "mistral", "sliding_window": 5}, ["leaves no window", "at most 3 sinks"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_a_config_that_is_of_no_use(config_folder, config, words):
    refuses([config_folder(config)], *words)


def test_a_gguf_file_of_an_architecture_that_transformers_lacks(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "rwkv9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuses([tmp_path / "other.gguf"], "rwkv9")


def test_a_gguf_file_that_is_damaged(tmp_path):
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 99)
    refuses([tmp_path / "noise.gguf"], "is no GGUF file")
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + b"noise" * 99)
    refuses([tmp_path / "noise.gguf"], "cannot be read")


def test_a_gguf_file_without_the_package(tmp_path):
    write_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    with (
        mock.patch("attention_sinks.gguf_files.is_gguf_available", lambda: False),
        mock.patch("attention_sinks.report.gguf_header.is_gguf_available", lambda: False),
        mock.patch("transformers.modeling_gguf_pytorch_utils.is_gguf_available", lambda: False),
    ):
        refuses([tmp_path / "tiny.gguf"], "pip install 'gguf>=0.10'")


def test_a_name_on_the_hub_without_a_connection():
    refuses(["somebody/something"], "'somebody/something'", "check the name and the connection")


def test_a_window_larger_than_of_use(folder):
    refuses([folder, "--window", 100_000], "--window=100000", "choose at most")


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder):
    with (
        mock.patch.object(memory, "get_max_memory", lambda: {0: 1000, "cpu": 500}),
        mock.patch.object(attention_sinks.AutoModelForCausalLM, "from_pretrained", side_effect=AssertionError),
    ):
        refuses([folder, "--run"], "memory are free", "leave --run out")


def test_the_index_of_a_checkpoint_says_how_large_it_is(tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="10kB")
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["metadata"]["total_size"] = 10**15
    index.write_text(json.dumps(said))
    refuses([tmp_path, "--run"], "1,000,000.0 GB")


def test_wrong_usage_is_exit_code_2():
    assert run("check").code == run("check", "model", "--nothing").code == run("nothing").code == 2
    assert run("check", "model", "--sinks", "-1").code == 2


# ---- the program


def test_help_fits_a_screen_and_has_examples():
    for arguments in (["--help"], ["check", "--help"]):
        result = run(*arguments)
        assert result.code == 0 and "Examples:" in result.out
        assert len(result.out.splitlines()) <= SCREEN and max(map(len, result.out.splitlines())) <= 80


def test_the_version():
    assert run("--version").out == f"attention-sinks {attention_sinks.__version__}\n"


def program(*arguments, **variables):
    command = [sys.executable, "-m", "attention_sinks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_the_program_is_the_module():
    done = program("--version")
    assert done.returncode == 0 and done.stdout == f"attention-sinks {attention_sinks.__version__}\n"


def test_a_shell_completes_commands():
    words = {"COMP_WORDS": "attention-sinks ch", "COMP_CWORD": "1", "_ATTENTION_SINKS_COMPLETE": "complete_bash"}
    assert "check" in program(**words).stdout.split()


def test_a_package_that_is_missing_is_named():
    code = "import sys; sys.modules['typer'] = None; from attention_sinks.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'attention_sinks[cli]'" in done.stderr


def test_help_waits_for_no_model_code():
    code = (
        "import sys; from attention_sinks.command.app import app\n"
        "try: app(['check', '--help'])\n"
        "except SystemExit: print('transformers.modeling_utils' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_garbage_collector_leaves_out_what_was_imported_and_works_on(folder):
    code = (
        f"import gc, sys; from attention_sinks.command.app import app; sys.argv[1:] = ['check', {str(folder)!r}]\n"
        "try: app()\n"
        "except SystemExit: print(gc.isenabled(), gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    enabled, frozen = done.stdout.splitlines()[-1].split()
    assert enabled == "True" and int(frozen) > 100_000
