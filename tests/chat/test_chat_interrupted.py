"""A chat that is interrupted: while it reads a long message, and at any line of the package while it takes a turn."""

import signal
import threading

import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import StreamingChat, inject_attention_sinks
from attention_sinks.chat import stream as stream_module
from attention_sinks.chat.answer import Answer
from attention_sinks.chat.decoding import Choosing
from attention_sinks.chat.messages import turns_of
from attention_sinks.chat.turns import Request
from support.faults import interrupted
from support.helpers import assert_close, assert_same_state, random_ids, refused, state_of, stream, tiny_llama
from support.toy_tokenizers import CHATML, word_tokenizer
from support.zoo import animal_of

LONG = " ".join(f"w{i % 40}" for i in range(900))  # four pieces
ANSWER = GenerationConfig(suppress_tokens=[0, 1, 2, 3, 4, 5], max_new_tokens=5)


def chat_with(model=None, sinks=4, window=12, **settings):
    model = inject_attention_sinks(model or tiny_llama(), sinks, window, **settings)
    return StreamingChat(model, word_tokenizer(CHATML), generation_config=ANSWER)


def say(chat, text, **options):
    return "".join(chat.send(text, **options))


def begun(**options):
    chat = chat_with(**options)
    say(chat, "w1 w2 w3")
    return chat


# ---- reading in pieces


def test_pieces_give_what_one_call_gives(monkeypatch):
    found = []
    for piece in (7, 256, 10_000):
        monkeypatch.setattr(stream_module, "PIECE", piece)
        chat = begun()
        answers = say(chat, LONG), say(chat, "w5")
        logits, _ = stream(chat.model, random_ids(1, 3), cache=chat.cache)
        found.append((answers, chat.cache.tokens_seen.tolist(), logits))
    for *facts, logits in found[1:]:
        assert facts == list(found[0][:2])
        assert_close(logits, found[0][2])


def test_progress_is_told_after_each_piece():
    told, chat = [], begun()
    assert say(chat, LONG, on_progress=lambda read, total: told.append((read, total))) == say(begun(), LONG)
    total = told[0][1]
    assert told == [(256, total), (512, total), (768, total), (total, total)] and 900 < total < 910
    told.clear()
    say(chat, "w1", on_progress=lambda read, total: told.append((read, total)))
    assert len(told) == 1 and told[0][0] == told[0][1] < 10


def test_several_conversations_are_read_together():
    long, short = chat_with(), chat_with()
    expected = [say(long, LONG), say(short, "w7")]
    both, told = chat_with(), []
    read = list(both.send([LONG, "w7"], on_progress=lambda *numbers: told.append(numbers)))
    assert ["".join(pieces) for pieces in zip(*read, strict=True)] == expected and len(told) == 4
    assert both.cache.tokens_seen.tolist() == [*long.cache.tokens_seen.tolist(), *short.cache.tokens_seen.tolist()]


def press(read, total):
    signal.raise_signal(signal.SIGINT)


def test_control_c_takes_effect_after_a_piece_and_the_message_is_unread():
    chat, untouched = begun(), begun()
    before, told = state_of(chat.cache), []
    with pytest.raises(KeyboardInterrupt):
        say(chat, LONG, on_progress=lambda *numbers: (told.append(numbers), press(*numbers)))
    assert len(told) == 1
    assert_same_state(chat.cache, before)
    assert say(chat, "w6") == say(untouched, "w6")


def test_control_c_in_the_first_message():
    chat = chat_with()
    with pytest.raises(KeyboardInterrupt):
        say(chat, LONG, on_progress=press)
    assert chat.cache.tokens_seen.tolist() == []
    both = list(chat.send(["w6", "w7"]))  # of any number, as in a new chat
    assert "".join(first for first, _ in both) == say(chat_with(), "w6")


@pytest.mark.parametrize("where", ["callback", "thread"])
def test_stop_takes_effect_after_a_piece_and_the_message_is_unread(where):
    chat, untouched, told = begun(), begun(), []
    before = state_of(chat.cache)

    def stop(*numbers):
        told.append(numbers)
        if where == "callback":
            chat.stop()
        else:
            thread = threading.Thread(target=chat.stop)
            thread.start()
            thread.join()

    assert say(chat, LONG, on_progress=stop) == "" and len(told) == 1
    assert_same_state(chat.cache, before)
    assert say(chat, "w6") == say(untouched, "w6")


def test_an_error_after_a_piece_leaves_the_chat_as_it_was():
    chat, untouched = begun(), begun()
    before, told = state_of(chat.cache), []

    def fail(*numbers):
        told.append(numbers)
        if len(told) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        say(chat, LONG, on_progress=fail)
    assert_same_state(chat.cache, before)
    assert say(chat, "w6") == say(untouched, "w6")


@pytest.mark.parametrize("action", ["send", "save", "reset"])
def test_what_would_disturb_an_answer_is_refused_while_it_is_made(action, tmp_path):
    chat, errors = begun(), []
    arguments = {"send": ("w1",), "save": (tmp_path / "chat",), "reset": ()}[action]

    def disturb(read, total):
        errors.append(refused(RuntimeError, lambda: getattr(chat, action)(*arguments), action, "stop()"))

    assert say(chat, "w4", on_progress=disturb) == say(begun(), "w4") and len(errors) == 1


def test_progress_that_cannot_be_called_is_refused():
    chat = begun()
    before = state_of(chat.cache)
    refused(TypeError, lambda: chat.send("w1", on_progress=3), "progress", "3")
    assert_same_state(chat.cache, before)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_what_cannot_be_read_in_pieces_is_read_whole(kind):
    """A dense prefill sees all of a message; the states of a hybrid take padding in the first call alone."""
    told = []
    progress = lambda *numbers: told.append(numbers)  # noqa: E731
    if kind == "dense":
        say(chat_with(attention_sink_prefill="dense"), LONG, on_progress=progress)
    else:
        list(chat_with(animal_of("bamba").build()).send([LONG, "w7"], on_progress=progress))
    assert len(told) == 1


# ---- an exception at any line


def turn(chat, message):
    return lambda: say(chat, message)


def copied(chat, tmp_path):
    chat.save(tmp_path / "copy")
    return StreamingChat.load(tmp_path / "copy", chat.model, chat.tokenizer)


def future(chat, tmp_path):
    """What the chat says next."""
    chat = copied(chat, tmp_path)
    answer = say(chat, "w8 w9")
    return answer, chat.cache.tokens_seen.tolist(), chat._stream.rows


def read(chat, tokens):
    """The chat has read `tokens`, and nothing that was said is unread."""
    rows = chat._stream.rows
    stream(chat.model, torch.tensor(tokens), cache=chat.cache)
    chat._stream.rows = tuple(row.fed() for row in rows)


def allowed_after(start, message, tmp_path):
    """Before the message; when it is read; after each token of the answer, which is fed or not."""
    allowed, turns = [future(start, tmp_path)], turns_of(message)
    chat = copied(start, tmp_path)
    request = Request(turns, True, [Answer()], Choosing(chat.generation_config))
    reading = chat._turns.reading(request, chat._turns.prompts(request))
    read(chat, reading.prompts)
    chat._stream.rows = reading.rows
    allowed.append(future(chat, tmp_path))
    for tokens in range(1, ANSWER.max_new_tokens + 1):
        chat = copied(start, tmp_path)
        request = Request(turns, True, [Answer()], Choosing(chat.generation_config))
        steps = chat._turns.begin(request, chat._turns.prompts(request))
        for _ in range(tokens):
            chat._turns.next(steps)
        allowed.append(future(chat, tmp_path))
        read(chat, [row.unfed for row in chat._stream.rows])
        allowed.append(future(chat, tmp_path))
    return allowed


@pytest.mark.parametrize(("message", "stride", "piece"), [("w4 w5", 23, 256), (LONG[:120], 83, 16)])
def test_ctrl_c_at_any_line_of_a_turn(message, stride, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "PIECE", piece)
    start = begun()
    allowed, line, found = allowed_after(start, message, tmp_path), 1, set()
    while True:
        chat = copied(start, tmp_path)
        if not interrupted(lambda chat=chat: say(chat, message), line):
            break
        try:
            now = future(chat, tmp_path)
        except RuntimeError as error:  # at the lines that end a call
            assert "reset()" in str(error)
        else:
            assert now in allowed, f"interrupted at line {line}"
            found.add(allowed.index(now))
        line += stride
    assert 0 in found and len(found) > 5
