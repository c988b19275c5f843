"""`attention-sinks chat`: a conversation by pipe, its commands, its sessions, and what is refused."""

import errno
import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
from rich.console import Console
from typer.testing import CliRunner

import attention_sinks
from attention_sinks.chat.answer import Answer, AnswerStream
from attention_sinks.chat.chat import StreamingChat
from attention_sinks.command import talking, terminal, typed
from attention_sinks.command.app import app
from attention_sinks.command.sessions import session_file, session_folder
from attention_sinks.command.terminal import MarkdownWriter, ReadingBar, blocks_of, show_answer
from attention_sinks.report import memory
from support.scripted import save_scripted_model
from support.toy_tokenizers import NUMBERS_THE_LAST, save_chat_model, word_tokenizer

ANSWERS = {
    "<start> user w1 w2 <end> <start> assistant": "<think> w3 w4 </think> w5 w6",
    "<start> user w3 <end> <start> assistant": "w7 w8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_scripted_model(tmp_path_factory.mktemp("models") / "tiny", ANSWERS)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("models") / "other")


def run(model, *options, typed=""):
    arguments = ["chat", str(model), *map(str, options)]
    typed = typed if isinstance(typed, bytes) else typed.encode()
    result = CliRunner().invoke(app, arguments, input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def refuses(model, *options, words, typed="w1 w2\n"):
    """Exit code 2, one line that says why, and nothing on stdout."""
    result = run(model, *options, typed=typed)
    assert result.code == 2 and result.out == "", result
    assert result.err.startswith("attention-sinks chat: error: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err, result.err


@pytest.fixture
def sessions(tmp_path):
    """Options of a session of that name, all in one folder."""
    return lambda name="garden": ("--session", name, "--session-folder", tmp_path / "new" / "sessions")


# ---- a conversation


def test_answers_are_all_of_stdout_and_the_rest_is_on_stderr(folder):
    result = run(folder, typed="w1 w2\n\nw3\n")
    assert result.code == 0 and result.out == "(thinks: w3 w4)\nw5 w6\nw7 w8\n"
    assert "4 sinks and a window of 251 tokens" in result.err
    status = [line for line in result.err.splitlines() if "tokens seen" in line]
    assert len(status) == 2 and "in the window" in status[0] and "tokens/s" in status[0]
    assert "\x1b" not in result.out + result.err


def test_an_answer_that_is_cut_says_so(folder):
    assert "cut at 1 tokens (--max-new-tokens)" in run(folder, "--max-new-tokens", 1, typed="w3\n").err


def test_the_cache_is_no_larger_than_its_sizes(folder):
    result = run(folder, "--sinks", 2, "--window", 6, "--max-new-tokens", 20, typed="w9 w9 w9 w9\n" * 3)
    assert "2 sinks and a window of 6 tokens" in result.err
    assert result.err.splitlines()[-1].split(" · ")[1] == "8 in the window"


def test_thoughts_can_be_forgotten(folder):
    kept, forgotten = (run(folder, "--thoughts", what, typed="w1 w2\n").err for what in ("keep", "forget"))
    tokens = [int(said.splitlines()[-1].split()[0]) for said in (kept, forgotten)]
    assert tokens[1] < tokens[0]


def test_sampling_with_a_seed_repeats_itself(other_folder):
    options = ("--temperature", 5, "--max-new-tokens", 12, "--seed")
    first, again, other = (run(other_folder, *options, seed, typed="w1\n").out for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("w1\n", "w1"),
        ("w1\\\nw2\n", "w1\nw2"),
        ('"""\nw1\n\n/exit\n"""\nw2\n', "w1\n\n/exit"),
        ('"""\nw1\n', "w1"),
        ("w1\\\n", "w1\n"),
        ("", None),
    ],
)
def test_messages_of_one_line_and_of_several(monkeypatch, lines, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    read = typed.read_message("> ", "... ")
    assert read == message if message is None else read.strip() == message.strip()


def test_a_terminal_that_writes_to_a_file_prompts_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: {"": "w1 \ud800"}[prompt])
    assert typed.read_message("> ", "... ") == "w1 ?"
    assert capsys.readouterr() == ("", "> ")


# ---- commands


def test_commands(folder, tmp_path):
    file = tmp_path / "chat"
    lines = (
        "w3",
        f"/save {file}",
        "/forget",
        "w1 w2",
        f"/load {file}",
        "/system w9",
        "/system",
        "/help",
        "/exit",
        "w3",
    )
    result = run(folder, typed="\n".join(lines))
    assert result.code == 0 and result.out == "w7 w8\n(thinks: w3 w4)\nw5 w6\n"
    for words in (f"saved to {file}", f"goes on with {file}, ", "with this system prompt", "/forget "):
        assert words in result.err
    assert file.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nothing", "there is no command '/nothing'"),
        ("/usr/bin w1", "A space before / sends"),
        ("/save", "needs the path"),
        ("/load nowhere/file", "nowhere/file"),
        ("/save nowhere/file", "nowhere"),
    ],
)
def test_a_command_that_fails_is_one_line_and_the_chat_goes_on(folder, line, words):
    result = run(folder, typed=f"{line}\nw3\n")
    assert result.code == 0 and result.out == "w7 w8\n" and words in result.err
    assert len(result.err.splitlines()) == 3


def test_a_line_with_a_space_before_is_no_command(folder):
    assert "there is no command" not in run(folder, "--max-new-tokens", 2, typed=" /help\n").err


# ---- stopping


def talk_of(folder):
    """A talk on a chat whose model is loaded here."""
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = attention_sinks.AutoTokenizer.from_pretrained(folder)
    return talking.Talk(mock.Mock(), StreamingChat(model, tokenizer))


@pytest.fixture
def python_handles_ctrl_c():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_stops_an_answer_and_the_chat_is_saved(folder, tmp_path, python_handles_ctrl_c, capsys):
    talk = talk_of(folder)
    talk.chat.autosave = str(tmp_path / "chat")
    lines = iter(["w3", "w3", None])
    presses = iter([signal.SIGINT])

    def press_once(text, dim=False):
        print(text, end="")
        for number in presses if text else ():
            signal.raise_signal(number)

    with (
        mock.patch.object(talking, "read_message", lambda *prompts: next(lines)),
        mock.patch.object(talking, "show", press_once),
    ):
        talk.go_on()
    first, second = (line for line in capsys.readouterr().err.splitlines() if "tokens seen" in line)
    assert " · stopped" in first and "stopped" not in second
    assert (tmp_path / "chat").exists()


def test_ctrl_c_while_a_message_is_read_takes_it_back(folder, python_handles_ctrl_c, capsys):
    talk = talk_of(folder)
    lines = iter(["w9 " * 600, None])
    press = mock.patch.object(ReadingBar, "__call__", lambda *_: signal.raise_signal(signal.SIGINT))
    with mock.patch.object(talking, "read_message", lambda *prompts: next(lines)), press:
        talk.go_on()
    assert "it is forgotten" in capsys.readouterr().err
    assert talk.chat.cache.get_seq_length() == 0


def test_two_presses_at_the_prompt_leave(folder, capsys):
    talk = talk_of(folder)
    with mock.patch.object(talking, "read_message", side_effect=[KeyboardInterrupt, "", *[KeyboardInterrupt] * 2]):
        talk.go_on()
    assert capsys.readouterr().err.count("Ctrl-C again") == 2


class _ClosedAfter(io.StringIO):
    """A pipe whose reader leaves once it has read something."""

    def write(self, text):
        if self.tell():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_a_reader_that_leaves_ends_the_chat_and_the_answer_is_kept(folder, tmp_path, monkeypatch):
    talk = talk_of(folder)
    talk.chat.autosave = str(tmp_path / "chat")
    monkeypatch.setattr(sys, "stdout", _ClosedAfter())
    lines = iter(["w1 w2", None])
    with (
        mock.patch.object(talking, "read_message", lambda *prompts: next(lines)),
        pytest.raises(BrokenPipeError),
    ):
        talk.go_on()
    assert sys.stdout.getvalue() == "(thinks: " and (tmp_path / "chat").exists()


def test_the_program_ends_quietly_when_its_reader_leaves(folder):
    command = [sys.executable, "-m", "attention_sinks", "chat", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        done.stdout.close()
        _, err = done.communicate(b"w3\nw3\n")
    assert done.returncode == 1 and b"roken pipe" not in err and err.count(b"tokens seen") == 1


# ---- sessions


def test_a_session_goes_on(folder, sessions):
    first = run(folder, *sessions(), "--system", "w9", "--window", 30, typed="w3\n")
    assert "--session garden goes on with this conversation" in first.err
    length = first.err.split(" tokens seen")[0].split()[-1]
    second = run(folder, *sessions(), typed="w3\n")
    assert f"goes on with --session garden, {length} tokens long" in second.err
    assert "a window of 30 tokens" in second.err
    assert "goes on with --session other" not in run(folder, *sessions("other")).err


def test_forgetting_is_kept_in_the_session(folder, sessions):
    run(folder, *sessions(), typed="w3\n/forget\n")
    assert "tokens long" not in run(folder, *sessions()).err


@pytest.mark.parametrize(
    "option",
    [("--window", 31), ("--sinks", 20), ("--system", "w8"), ("--thoughts", "forget"), ("--cache-dtype", "int8")],
)
def test_a_session_keeps_what_it_was_begun_with(folder, sessions, option):
    run(folder, *sessions(), "--system", "w9", "--window", 30, typed="w3\n")
    refuses(folder, *sessions(), *option, words=["--session=garden was begun with", f"leave {option[0]} out"])
    same = ("--system", "w9", "--window", 30, "--sinks", 0, "--thoughts", "keep")
    assert run(folder, *sessions(), *same).code == 0


def test_a_new_system_prompt_keeps_the_other_settings_of_the_session(folder, sessions):
    begun = ("--window", 30, "--sinks", 20, "--thoughts", "forget", "--template-kwargs", '{"a": 1}')
    run(folder, *sessions(), *begun, typed="w3\n")
    assert "with this system prompt" in run(folder, *sessions(), typed="/system w9\nw3\n").err
    assert run(folder, *sessions(), *begun, "--system", "w9").code == 0


def test_a_long_system_prompt_leaves_a_short_one_after_it_no_more_sinks_than_the_model_has(folder, sessions):
    run(folder, *sessions(), "--system", "w9 " * 30, typed="w3\n/system w9\n/system\n")
    assert " 4 sinks and " in run(folder, *sessions()).err


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/b", "CON", "x" * 500, "é", ".", "\ud800"])
def test_a_name_is_no_path(tmp_path, name):
    file = session_file(name, tmp_path)
    assert file.parent == tmp_path and len(file.name) < 100 and file.name.isascii()
    assert file != session_file(name + " ", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such variable")
def test_sessions_lie_in_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert session_folder() == tmp_path / "attention_sinks" / "chats"


# ---- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--window", 100_000), ["--window=100000", "choose at most"]),
        (("--template-kwargs", "{a: 1}"), ["--template-kwargs", "no JSON"]),
        (("--template-kwargs", "[1]"), ["--template-kwargs", "pass an object"]),
        (("--template-kwargs", '{"messages": []}'), ["messages"]),
        (("--device", "abacus"), ["--device=abacus", "leave it out"]),
        (("--session", " "), ["--session needs a name"]),
        (("--session-folder", "folder"), ["--session NAME"]),
        (("--session", "a", "--session-folder", __file__), ["cannot be written", "--session-folder"]),
    ],
)
def test_options_that_cannot_be(folder, options, words):
    refuses(folder, *options, words=words)


def test_what_check_refuses(tmp_path):
    refuses(tmp_path / "nothing", words=["does not exist"])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    refuses(tmp_path, words=["absolute positions"])


def test_a_chat_template_that_cannot_stream_is_refused_before_weights_are_read(tmp_path):
    folder = save_chat_model(tmp_path / "tiny")
    word_tokenizer(NUMBERS_THE_LAST).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    refuses(folder, words=["cannot chat"])


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder, sessions, tmp_path):
    with mock.patch.object(memory, "get_max_memory", lambda: {0: 10**12, "cpu": 500}):
        refuses(folder, *sessions(), "--device", "cpu", words=["memory are free", "--dtype bfloat16"])
    assert not (tmp_path / "new").exists()


def test_a_session_of_another_model(folder, other_folder, sessions, tmp_path):
    run(folder, *sessions(), typed="w3\n")
    (file,) = (tmp_path / "new" / "sessions").iterdir()
    before = file.read_bytes()
    refuses(other_folder, *sessions(), words=["--session=garden cannot go on with this model", "another --session"])
    assert file.read_bytes() == before


def test_a_session_folder_that_is_not_ours(folder, tmp_path):
    with mock.patch.object(os, "access", lambda path, mode: False):
        refuses(folder, "--session", "a", "--session-folder", tmp_path / "sessions", words=["cannot be written"])
    assert not (tmp_path / "sessions").exists()


def test_input_that_is_no_text(folder):
    result = run(folder, typed=b"w3\n\xff\xfe\n")
    assert result.code == 2 and "the input is no text in utf-8" in result.err


def test_wrong_usage_is_exit_code_2(folder):
    assert run(folder, "--temperature", -1).code == run(folder, "--thoughts", "sell").code == 2


# ---- what a terminal shows


def console(width=60, height=10):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def test_markdown_is_split_into_blocks_that_are_complete():
    code = "```python\na = 1\n\nb = 2\n```\n"
    assert blocks_of(f"# One\n\n\n{code}\n- x\n- y") == ["# One\n", code, "- x\n- y"]
    assert blocks_of("~~~\n```\n\n~") == ["~~~\n```\n\n~"]
    assert blocks_of("") == [""] and blocks_of("a\n") == ["a\n"]


def test_a_block_that_is_too_long_goes_on_in_its_fence():
    text = "```\n" + "x = 1\n" * 3000
    *complete, last = blocks_of(text)
    assert complete and all(block.startswith("```\n") for block in [*complete, last])
    assert max(map(len, complete)) < 2 * terminal.LONGEST_BLOCK
    assert blocks_of(last) == [last]


def test_markdown_is_the_same_however_it_comes():
    text = "Some **bold** words.\n\n1. one\n2. two\n\n```\ncode\n\nmore\n```\n\nThe end."
    shown = []
    for size in (1, 7, len(text)):
        screen = console()
        with mock.patch.object(terminal, "Live", mock.MagicMock()), MarkdownWriter(screen) as writer:
            writer.write("(thinks: hm", dim=True)
            writer.write(")\n", dim=True)
            for start in range(0, len(text), size):
                writer.write(text[start : start + size])
        shown.append(screen.file.getvalue())
    assert shown[0] == shown[1] == shown[2]
    assert "**" not in shown[0] and " 2 two" in shown[0] and shown[0].startswith("(thinks: hm)\n")


def test_an_answer_longer_than_the_screen_is_shown_whole():
    screen = console()
    with MarkdownWriter(screen) as writer:
        for number in range(40):
            writer.write(f"- line {number}\n")
    printed = screen.file.getvalue()
    assert all(f"line {number} " in printed.rpartition("line 0 ")[2] for number in range(1, 40))
    assert printed.rpartition("\x1b[?25")[2].startswith("h"), "the cursor is hidden"


def test_what_could_steer_the_terminal_is_left_out(capsys):
    terminal.show("a\x1b[2J\x07\u009bb\tc\n")
    assert capsys.readouterr().out == "a[2Jb\tc\n"


def test_keys_are_not_echoed_while_an_answer_is_drawn(monkeypatch):
    termios = pytest.importorskip("termios")
    terminal_end, program_end = os.openpty()
    with open(terminal_end), open(program_end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with terminal.keys_not_echoed():
            assert not termios.tcgetattr(stdin)[3] & termios.ECHO
        assert termios.tcgetattr(stdin)[3] & termios.ECHO


def test_a_bar_tells_how_far_a_long_message_is_read(monkeypatch):
    screen = console(width=100)
    monkeypatch.setattr(terminal, "Console", lambda stderr: screen)
    with ReadingBar() as bar:
        bar(256, 600)
        bar(600, 600)
    assert "/600" in screen.file.getvalue() and bar.read_at is not None


def test_what_was_said_before_an_error_is_shown():
    said = []

    def turn():
        yield terminal.Piece("w1 ")
        raise KeyboardInterrupt

    answer = AnswerStream(turn(), lambda: None, Answer())
    answer.answer.text = "w1 w2"
    with pytest.raises(KeyboardInterrupt):
        show_answer(answer, ReadingBar(), lambda text, dim=False: said.append(text), "label ")
    assert "".join(said) == "label w1 w2"


# ---- the program


def test_help_fits_a_screen_and_has_examples():
    result = CliRunner().invoke(app, ["chat", "--help"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and "Examples:" in lines[-3]
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_the_program_chats_by_pipe(folder):
    command = [sys.executable, "-m", "attention_sinks", "chat", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, input="w3\n")
    assert done.returncode == 0 and done.stdout == "w7 w8\n"
