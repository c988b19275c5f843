"""The demos, run as a user runs them, on a tiny random model."""

import json
import signal
import subprocess
import sys

import pytest
from transformers import GenerationConfig

from support.helpers import tiny_llama
from support.paths import ROOT
from support.scripted import save_scripted_model
from support.toy_tokenizers import save_chat_model, word_tokenizer

DEMO = ROOT / "demo"


@pytest.fixture
def folder(tmp_path):
    return save_chat_model(tmp_path / "tiny")


def run(script, *arguments, typed=None, refused=False):
    command = [sys.executable, DEMO / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, input=typed)
    assert (done.returncode != 0) == refused, done.stderr
    return done.stderr if refused else done.stdout


@pytest.mark.parametrize("experiment", ["attention_sinks", "windowed", "transformers"])
def test_a_chat_runs_and_sums_up(folder, tmp_path, experiment):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"turns": [f"w{i} w{i + 1}", f"w{i}"]}) for i in range(3)))
    options = ("--model_name_or_path", folder, "--experiment", experiment, "--dataset_name", prompts)
    options += ("--window_size", 16, "--max_new_tokens", 12, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    printed = run("streaming.py", *options)
    assert printed.count("User: w") == 6 and "turns" in printed
    assert "User: w2 w3" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_chat_is_also_logged_in_json_lines(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w0 w1\nw2\n")
    options = ("--model_name_or_path", folder, "--dataset_name", prompts, "--window_size", 16, "--device", "cpu")
    options += ("--max_new_tokens", 6, "--log_file", tmp_path / "log.txt", "--json_log", tmp_path / "new" / "log.jsonl")
    printed = run("streaming.py", *options)
    run_line, *turns, summary = map(json.loads, (tmp_path / "new" / "log.jsonl").read_text("utf-8").splitlines())
    assert (run_line["experiment"], run_line["model"]) == ("attention_sinks", "tiny")
    assert (run_line["attention_sink_size"], run_line["window_size"]) == (4, 16)
    assert [turn["prompt"] for turn in turns] == ["w0 w1", "w2"]
    assert all(f"Assistant: {turn['answer']}\n" in printed for turn in turns)
    assert summary["turns"] == 2 and summary["tokens_cached"] == 16 and summary["tokens_written"] > 0


def test_endless_generation_runs(folder, tmp_path):
    options = ("--model_name_or_path", folder, "--text", "w1 w2", "--min_new_tokens", 60, "--max_new_tokens", 60)
    options += ("--window_size", 16, "--log_file", tmp_path / "log.txt", "--device", "cpu")
    printed = run("endless_generation.py", *options)
    assert "60" in printed and "most recent tokens are kept (attention_sinks)" in printed
    printed = run("endless_generation.py", *options, "--cache_dtype", "int8")
    assert "60" in printed and "most recent tokens are kept in int8 (attention_sinks)" in printed


def test_endless_generation_ends_in_order_after_ctrl_c(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(DEMO)
    import endless_generation
    import utils

    presses = iter([signal.SIGINT])

    def press_once(streamer, text, stream_end=False):
        for number in presses:
            signal.raise_signal(number)

    options = ("--model_name_or_path", folder, "--text", "w1 w2", "--min_new_tokens", 10**6, "--max_new_tokens", 10**6)
    options += ("--window_size", 16, "--log_file", tmp_path / "log.txt", "--device", "cpu", "--temperature", 0)
    monkeypatch.setattr(sys, "argv", ["endless_generation.py", *map(str, options)])
    monkeypatch.setattr(utils.FileStreamer, "on_finalized_text", press_once)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        endless_generation.main()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "tokens streamed" in capsys.readouterr().out


def test_prompts_typed_in_the_terminal(folder, tmp_path):
    options = ("--interactive", "--model_name_or_path", folder, "--device", "cpu", "--log_file", tmp_path / "log.txt")
    printed = run("streaming.py", *options, "--window_size", 16, "--max_new_tokens", 5, typed="w1 w2\n\nw3\nexit\nw4\n")
    assert printed.count("Assistant: ") == 2 and "turns                 2" in printed
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count("User: w") == 2


ASKED = "<start> user w1 w2 <end> <start> assistant"
CALL = '<tool_call> {"name": "calculate", "arguments": {"expression": "2+3"}} </tool_call>'


@pytest.fixture
def chat_in(tmp_path, monkeypatch, capsys):
    """Run the chat demo in this process, on a model in a folder, with what is typed."""
    monkeypatch.syspath_prepend(DEMO)
    monkeypatch.chdir(tmp_path)
    import streaming

    def chat(folder, *options, typed="w1 w2", refused=False):
        logs = ("--log_file", "log.txt", "--json_log", "log.jsonl", "--device", "cpu")
        common = ("--interactive", "--model_name_or_path", folder, "--max_new_tokens", 20)
        monkeypatch.setattr(sys, "argv", ["streaming.py", *map(str, (*common, *logs, *options))])
        lines = iter([typed, "exit"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        if refused:
            with pytest.raises(SystemExit) as error:
                streaming.main()
            assert "\n" not in str(error.value)
            return str(error.value)
        streaming.main()
        return capsys.readouterr().out

    return chat


def entries(tmp_path):
    return list(map(json.loads, (tmp_path / "log.jsonl").read_text("utf-8").splitlines()))


def test_thoughts_are_marked_in_plain_output(chat_in, tmp_path):
    folder = save_scripted_model(tmp_path / "tiny", {ASKED: "<think> w3 w4 </think> w5 w6"})
    printed = chat_in(folder)
    assert "Assistant: (thinks: w3 w4)\nw5 w6" in printed and "\x1b" not in printed
    assert {"prompt": "w1 w2", "answer": "w5 w6", "thoughts": "w3 w4"} in entries(tmp_path)


@pytest.mark.parametrize(("thoughts", "remembers"), [("keep", True), ("forget", False)])
def test_thoughts_are_kept_or_forgotten(chat_in, tmp_path, thoughts, remembers):
    folder = save_scripted_model(tmp_path / "tiny", {ASKED: "<think> w3 w4 </think> w5 w6"})
    chat_in(folder, "--thoughts", thoughts)
    assert (entries(tmp_path)[-1]["tokens_streamed"] > 10) == remembers


def test_tools_are_called_and_their_results_sent(chat_in, tmp_path):
    answers = {ASKED: CALL, "<start> tool 5 <end> <start> assistant": "w7 5"}
    printed = chat_in(save_scripted_model(tmp_path / "tiny", answers), "--tools")
    assert '(calls calculate {"expression": "2+3"}: 5)\n' in printed and "Assistant: w7 5\n" in printed
    turn = entries(tmp_path)[1]
    assert turn["answer"] == "w7 5"
    assert turn["tool_calls"] == [{"name": "calculate", "arguments": {"expression": "2+3"}}]


@pytest.mark.parametrize(
    ("name", "arguments", "content"),
    [
        ("calculate", {"expression": "-3 * (4 + 5) / 2"}, "-13.5"),
        ("calculate", '{"expression": "7 // 2 % 2"}', "1"),
        ("calculate", {"expression": "__import__('os').getcwd()"}, "no arithmetic"),
        ("calculate", {"expression": "9**9**9"}, "no arithmetic"),
        ("calculate", {"expression": "1 / 0"}, "error: division by zero"),
        ("calculate", {}, "error: "),
        ("current_time", {"timezone": "UTC"}, "UTC"),
        ("current_time", {"timezone": "nowhere"}, "error: "),
        ("remove_files", {}, "there is no tool 'remove_files'"),
    ],
)
def test_a_tool_gives_a_result_or_an_error_that_the_model_can_read(monkeypatch, name, arguments, content):
    monkeypatch.syspath_prepend(DEMO)
    import tools

    message = tools.result_of({"id": "7", "function": {"name": name, "arguments": arguments}})
    assert content in message.pop("content")
    assert message == {"role": "tool", "name": name, "tool_call_id": "7"}


def test_a_chat_is_saved_and_goes_on(chat_in, folder, tmp_path):
    options = ("--autosave", "chat", "--system", "w8 w9", "--window_size", 20)
    chat_in(folder, *options)
    length = entries(tmp_path)[-1]["tokens_streamed"]
    printed = chat_in(folder, *options, typed="w3")
    assert f"goes on with chat, {length} tokens long" in printed
    assert entries(tmp_path)[-1]["tokens_streamed"] > length


@pytest.mark.parametrize(
    ("option", "value"), [("--system", "w1"), ("--window_size", 30), ("--thoughts", "forget"), ("--tools", None)]
)
def test_a_saved_chat_keeps_what_it_was_begun_with(chat_in, folder, tmp_path, option, value):
    saved = ("--autosave", "chat", "--system", "w8 w9")
    chat_in(folder, *saved, "--window_size", 20)
    other = [*saved, "--window_size", 20, option, *([] if value is None else [value])]
    message = chat_in(folder, *other, refused=True)
    assert option in message


@pytest.mark.parametrize(
    "options",
    [
        ("--chat_template_kwargs", "{enable_thinking: false}"),
        ("--chat_template_kwargs", "[1]"),
        ("--chat_template_kwargs", '{"messages": []}'),
        ("--tools",),  # the template ignores them
        ("--autosave", "nowhere/chat"),
        ("--autosave", "chat", "--experiment", "transformers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(chat_in, folder, tmp_path, options):
    message = chat_in(folder, *options, refused=True)
    assert options[0].strip("-") in message
    assert not (tmp_path / "log.txt").exists()


def test_a_model_without_chat_template_is_pointed_to_the_other_demo(folder):
    (folder / "chat_template.jinja").unlink()
    message = run("streaming.py", "--model_name_or_path", folder, "--device", "cpu", refused=True)
    assert "chat template" in message and "endless_generation.py" in message and "Traceback" not in message


def test_the_plain_chat_says_what_generate_says_of_the_whole_conversation(monkeypatch):
    monkeypatch.syspath_prepend(DEMO)
    import streaming

    model, tokenizer = tiny_llama(), word_tokenizer()
    settings = GenerationConfig(max_new_tokens=6, suppress_tokens=[0, 1, 2, 3, 4, 5], eos_token_id=1)
    chat, messages = streaming.PlainChat(model, tokenizer, generation_config=settings), []
    for question in ("w1 w2", "w3", "w4 w5"):
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").input_ids
        expected = model.generate(ids, generation_config=settings, pad_token_id=1)[0, ids.shape[1] :]
        messages.append({"role": "assistant", "content": "".join(chat.send(question))})
        assert messages[-1]["content"] == tokenizer.decode(expected)
    assert chat.cache.get_seq_length() == ids.shape[1] + 5
