"""Thoughts: told apart from the answer, and forgotten after it."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import StreamingChat, inject_attention_sinks
from attention_sinks.chat import stream as stream_module
from attention_sinks.chat.answer import Answer
from attention_sinks.chat.decoding import Choosing
from attention_sinks.chat.messages import turns_of
from attention_sinks.chat.stream import ChatStream
from attention_sinks.chat.turns import Request, exhaust
from support.faults import interrupted
from support.helpers import assert_close, random_ids, refused, stream, tiny_llama
from support.toy_tokenizers import thinking_tokenizer, word_tokenizer
from support.zoo import animal_of

pytestmark = pytest.mark.each_release

S, W = 4, 24
ANSWER = GenerationConfig(max_new_tokens=40)
RAW = "<think> w1 w2 w3 w4 w5 w6 </think> w7 w8"


def chat_with(thoughts="forget", model=None, window=W, tokenizer=None, **options):
    model = inject_attention_sinks(model or tiny_llama(), S, window)
    options.setdefault("generation_config", ANSWER)
    return StreamingChat(model, tokenizer or thinking_tokenizer(), thoughts=thoughts, **options)


def history(chat, *said):
    """Ids of a whole conversation as the template writes it; `said` are messages and answers in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return chat.tokenizer(chat.tokenizer.apply_chat_template(messages, tokenize=False)).input_ids


def assert_stream_is(chat, ids):
    """The chat's stream goes on as one that has been fed `ids`; what was said last may not be fed yet."""
    (row,) = chat._stream.rows
    fed = ids[: len(ids) - len(row.unfed)]
    assert ids[len(fed) :] == list(row.unfed) and chat.cache.tokens_seen.tolist() == [len(fed)]
    more, alike = random_ids(1, 5), chat.make_cache(len(chat.template.prefix()))
    found, _ = stream(chat.model, more, cache=copy.deepcopy(chat.cache))
    expected, _ = stream(chat.model, torch.cat([torch.tensor([fed]), more], dim=1), cache=alike)
    assert_close(found, expected[:, -5:])


# ---- telling them apart


def test_pieces_and_answers_know_their_thoughts(says):
    chat = chat_with("keep")
    says(chat, RAW)
    answer = chat.send("w20")
    pieces = list(answer)
    assert {piece.is_thought for piece in pieces} == {True, False}
    assert (
        "".join(piece for piece in pieces if piece.is_thought).strip() == answer.thoughts.strip() == "w1 w2 w3 w4 w5 w6"
    )
    assert str(answer) == answer.text == "w7 w8"
    assert answer.message["reasoning_content"] == answer.thoughts
    assert answer.finish_reason == "stop" and answer.usage.tokens_written == 10


def test_thoughts_stay_as_they_were_said_by_default(says):
    chat = chat_with("keep")
    says(chat, RAW)
    chat.ask("w20")
    says(chat, "w9")
    chat.ask("w21")
    # the template's own history has no thoughts: the stream has those that were said
    said = f"<start> user w20 <end> <start> assistant {RAW} <end> <start> user w21 <end> <start> assistant w9"
    assert_stream_is(chat, chat.tokenizer(said).input_ids)


# ---- forgetting


@pytest.mark.parametrize("window", [8, 200])
def test_the_stream_is_what_the_template_writes_of_the_history(says, window):
    chat = chat_with(window=window)
    said = []
    for question, thought, answer in [("w20", "w1 " * 9, "w7 w8"), ("w21 w22", "", "w9"), ("w23", "w2", "w10 w11 w12")]:
        says(chat, f"<think> {thought} </think> {answer}" if thought else answer)
        assert chat.ask(question).text == answer
        said += [question, answer]
        assert_stream_is(chat, history(chat, *said)[:-1])  # the template closes the answer with the next turn


def test_long_thoughts_take_no_more_memory(says):
    chat = chat_with(generation_config=GenerationConfig(max_new_tokens=300), window=8)
    says(chat, "w9")
    chat.ask("w20")
    before = chat.cache.nbytes
    says(chat, "<think> " + "w1 " * 200 + "</think> w7")
    chat.ask("w21")
    assert chat.cache.nbytes == before and chat._stream.fork is None
    assert_stream_is(chat, history(chat, "w20", "w9", "w21", "w7")[:-1])


def test_an_answer_cut_in_its_thoughts_leaves_none(says):
    chat = chat_with(generation_config=GenerationConfig(max_new_tokens=4))
    says(chat, RAW)
    answer = chat.ask("w20")
    assert (answer.text, answer.thoughts.strip(), answer.finish_reason) == ("", "w1 w2 w3", "length")
    says(chat, "w9")
    chat.ask("w21")
    assert_stream_is(chat, history(chat, "w20", "", "w21", "w9")[:-1])


@pytest.mark.parametrize("pieces", range(1, 8))
def test_an_answer_that_is_left_is_forgotten_too(says, pieces):
    chat = chat_with()
    says(chat, RAW)
    answer = chat.send("w20")
    for _ in range(pieces):
        next(answer)
    answer.close()
    assert answer.finish_reason == "interrupted"
    says(chat, "w9")
    chat.ask("w21")
    assert_stream_is(chat, history(chat, "w20", answer.text.strip(), "w21", "w9")[:-1])


def test_several_conversations_forget_together(says):
    chat = chat_with()
    says(chat, RAW, "w9")
    assert [answer.text for answer in chat.ask(["w20", "w21 w22"])] == ["w7 w8", "w9"]
    says(chat, "w11", "<think> w3 </think> w12")
    chat.ask(["w23", "w24"])
    for row, said in enumerate([("w20", "w7 w8", "w23", "w11"), ("w21 w22", "w9", "w24", "w12")]):
        assert chat.cache.tokens_seen.tolist()[row] == len(history(chat, *said)) - 1
    alone = chat_with()
    says(alone, "w9")
    alone.ask("w21 w22")
    says(alone, "<think> w3 </think> w12")
    alone.ask("w24")
    more = random_ids(1, 4)
    together, _ = stream(chat.model, more.expand(2, -1), cache=chat.cache)
    assert_close(together[1:], stream(alone.model, more, cache=alone.cache)[0])


def test_states_of_a_hybrid_model_are_forked_as_well(says):
    chat = chat_with(model=animal_of("bamba").build())
    says(chat, RAW)
    chat.ask("w20")
    says(chat, "w9")
    chat.ask("w21")
    assert_stream_is(chat, history(chat, "w20", "w7 w8", "w21", "w9")[:-1])


def test_conversations_with_states_cannot_forget_together():
    chat = chat_with(model=animal_of("bamba").build())
    refused(ValueError, lambda: chat.send(["w20", "w21 w22"]), "thoughts='forget'", "2 conversations")


def test_a_model_that_does_not_think_has_nothing_to_forget(says):
    chat = chat_with(tokenizer=word_tokenizer())
    says(chat, "w7 w8")
    answer = chat.send("w20")
    next(answer)
    assert chat._stream.fork is None


def test_other_words_for_thoughts_are_refused():
    refused(ValueError, lambda: chat_with("drop"), "thoughts", "drop")


# ---- broken off


def future(chat, tmp_path):
    """What the chat's file says of it."""
    chat.save(tmp_path / "file")
    other = StreamingChat.load(tmp_path / "file", chat.model, chat.tokenizer)
    rows, seen = other._stream.rows, other.cache.tokens_seen.tolist()
    logits, _ = stream(other.model, random_ids(1, 3), cache=other.cache)
    return rows, seen, logits


def begun(says):
    chat = chat_with()
    says(chat, "w9")
    chat.ask("w20")
    return chat


def left_after(start, steps, tmp_path, says):
    """The chat when its answer was left after so many steps, None for none."""
    start.save(tmp_path / "copy")
    chat = StreamingChat.load(tmp_path / "copy", start.model, start.tokenizer)
    if steps:
        says(chat, RAW)
        request = Request(turns_of("w21"), True, [Answer()], Choosing(chat.generation_config))
        turn = chat._turns.begin(request, chat._turns.prompts(request))
        for _ in range(steps):
            chat._turns.next(turn)
        chat._turns.leave()
        exhaust(chat._turns.forgetting(), chat._stream)
    return chat


def test_ctrl_c_at_any_line_of_a_turn_that_forgets(says, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "PIECE", 3)
    start, line, found = begun(says), 1, set()
    allowed = [future(left_after(start, steps, tmp_path, says), tmp_path) for steps in range(12)]
    while True:
        chat = left_after(start, 0, tmp_path, says)
        says(chat, RAW)
        if not interrupted(lambda chat=chat: chat.ask("w21"), line):
            break
        try:
            chat.stop()
            chat._turns.leave()
            exhaust(chat._turns.forgetting(), chat._stream)
            now = future(chat, tmp_path)
        except RuntimeError as error:  # at the lines that end a call
            assert "reset()" in str(error)
        else:
            fitting = [
                index
                for index, (rows, seen, logits) in enumerate(allowed)
                if seen == now[1] and torch.allclose(logits, now[2], atol=2e-4) and rows[0].turn == now[0][0].turn
            ]
            assert fitting, f"interrupted at line {line}"
            found.update(fitting)
        line += 211
    assert len(found) > 2


def test_ctrl_c_when_the_log_is_written_anew(says, tmp_path, monkeypatch):
    """What was fed is compared with what is to be remembered, so the log must not say that before the stream does."""
    start = begun(says)
    allowed = future(left_after(start, 11, tmp_path, says), tmp_path)
    chat, write, adopt = left_after(start, 0, tmp_path, says), stream_module.TurnLog.write, ChatStream.adopt
    says(chat, RAW)

    def write_and_break_off(log, *arguments):
        write(log, *arguments)
        raise KeyboardInterrupt

    def adopt_and_break_off(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(stream_module.TurnLog, "write", write_and_break_off)
            adopt(*arguments)

    monkeypatch.setattr(ChatStream, "adopt", adopt_and_break_off)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("w21")
    monkeypatch.setattr(ChatStream, "adopt", adopt)
    chat.stop()
    exhaust(chat._turns.forgetting(), chat._stream)
    rows, seen, logits = future(chat, tmp_path)
    assert seen == allowed[1] and rows[0].turn == allowed[0][0].turn
    assert_close(logits, allowed[2])


def test_a_chat_saved_amid_an_answer_is_as_if_it_had_been_left(says, tmp_path):
    chat = begun(says)
    says(chat, RAW)
    answer = chat.send("w21")
    while not answer.text:
        next(answer)
    chat.save(tmp_path / "chat")
    assert chat._stream.fork is not None  # it goes on as it was
    text = answer.text
    other = StreamingChat.load(tmp_path / "chat", chat.model, chat.tokenizer)
    assert_stream_is(other, history(other, "w20", "w9", "w21", text.strip())[:-1])
    rest = list(answer)
    assert answer.text == "w7 w8" and rest
    assert_stream_is(chat, history(chat, "w20", "w9", "w21", "w7 w8")[:-1])


def test_an_error_while_forgetting_is_made_good_by_the_next_use(says):
    chat = begun(says)
    says(chat, RAW)

    def fail(*_):
        (row,) = chat._stream.rows or (None,)
        if row and row.exchange and row.exchange[-1]["role"] == "assistant":
            raise RuntimeError("out of memory")

    handle = chat.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat.ask("w21")
    handle.remove()
    says(chat, "w11")
    chat.ask("w22")
    assert_stream_is(chat, history(chat, "w20", "w9", "w21", "w7 w8", "w22", "w11")[:-1])
