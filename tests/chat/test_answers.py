"""What `send` and `ask` return: text, why it ended, what it took; in loops and in event loops."""

import asyncio
import copy
import gc
import pickle
import weakref

import pytest
from transformers import GenerationConfig

from attention_sinks import Answer, AnswerStreams, Piece, StreamingChat, inject_attention_sinks
from support.helpers import refused, tiny_llama
from support.toy_tokenizers import CHATML, word_tokenizer

pytestmark = pytest.mark.each_release

S, W = 4, 12


def chat_with(template=CHATML, **options):
    options.setdefault("generation_config", GenerationConfig(max_new_tokens=5))
    return StreamingChat(inject_attention_sinks(tiny_llama(), S, W), word_tokenizer(template), **options)


@pytest.mark.parametrize(
    ("raw", "settings", "text", "reason"),
    [
        ("w7 w8", {}, "w7 w8", "stop"),
        ("w1 w2 w3 w4 w5 w6", {}, "w1 w2 w3 w4 w5", "length"),
        ("", {}, "", "stop"),
        ("w1 w2", {"max_time": 0.0}, "w1", "length"),
    ],
)
def test_an_answer_says_why_it_ended(says, raw, settings, text, reason):
    chat = chat_with(generation_config=GenerationConfig(max_new_tokens=5, **settings))
    says(chat, raw)
    answer = chat.ask("w20")
    assert (str(answer), answer.text, answer.finish_reason) == (text, text, reason)
    assert answer.message == {"role": "assistant", "content": text} and answer.thoughts == "" == "".join(
        answer.tool_calls
    )
    written = len(text.split())
    assert answer.usage.tokens_read == len(chat.template.first_turn("w20").ids)
    assert answer.usage.tokens_written == written
    assert (
        answer.usage.tokens_cached == min(answer.usage.tokens_read + max(written - (reason != "stop"), 0), S + W)
        or written
    )


def test_an_answer_tells_of_itself_while_it_is_made(says):
    chat = chat_with()
    says(chat, "w7 w8 w9")
    answer = chat.send("w20")
    assert "not read yet" in repr(answer) and answer.finish_reason is None and str(answer) == ""
    assert next(answer) == "w7 " and answer.text == "w7 " and "being made" in repr(answer)
    assert "".join(answer) == "w8 w9" and answer.text == "w7 w8 w9" and "'stop'" in repr(answer)
    assert next(answer, None) is None


def test_an_answer_that_is_left_says_so_with_all_that_was_said(says):
    chat = chat_with()
    says(chat, "w7 w8 w9")
    answer = chat.send("w20")
    next(answer)
    chat.stop()
    assert answer.finish_reason == "interrupted" and answer.text == "w7 w8"  # the word that was held back as well


def test_several_answers(says):
    chat = chat_with()
    says(chat, "w7", "w8 w9 w10")
    stream = chat.send(["w20", "w21"])
    assert isinstance(stream, AnswerStreams) and all(len(pieces) == 2 for pieces in stream)
    assert [answer.text for answer in stream.answers] == ["w7", "w8 w9 w10"]
    says(chat, "w1 w2 w3 w4 w5 w6", "w8")
    answers = chat.ask(["w22", [{"role": "user", "content": "w23"}]])
    assert [(answer.text, answer.finish_reason) for answer in answers] == [("w1 w2 w3 w4 w5", "length"), ("w8", "stop")]
    assert all(isinstance(answer, Answer) for answer in answers)


def test_an_answer_that_nobody_holds_is_left_at_once(says):
    chat = chat_with()
    says(chat, "w7 w8 w9")
    answer = chat.send("w20")
    next(answer)
    turn = weakref.ref(answer._turn)
    gc.disable()
    try:
        del answer
        assert turn() is None
    finally:
        gc.enable()


def test_a_piece_is_text_that_can_be_copied():
    piece = Piece("w1 ", True)
    for other in (piece, copy.copy(piece), copy.deepcopy(piece), pickle.loads(pickle.dumps(piece))):
        assert other == "w1 " and other.is_thought and isinstance(other, str)


# ---- event loops


def test_an_answer_is_read_in_an_event_loop(says):
    chat = chat_with()
    says(chat, "w7 w8 w9")

    async def read():
        ticks, going = 0, True

        async def tick():
            nonlocal ticks
            while going:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        pieces = [piece async for piece in chat.asend("w20")]
        going = False
        await ticking
        return pieces, ticks

    pieces, ticks = asyncio.run(read())
    assert "".join(pieces) == "w7 w8 w9" and ticks > 3


def test_a_cancelled_task_leaves_the_answer_and_the_chat_goes_on(says):
    chat = chat_with(generation_config=GenerationConfig(max_new_tokens=100))
    says(chat, "w7 " * 90)
    answer = chat.asend("w20")

    async def read():
        async for _ in answer:
            pass

    async def cancel():
        task = asyncio.create_task(read())
        while not answer.text:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert answer.finish_reason == "interrupted" and 0 < len(answer.text.split()) < 90
    says(chat, "w9")
    assert chat.ask("w21").text == "w9"


def test_conversations_in_one_event_loop(says):
    async def read(chat):
        return "".join([piece async for piece in chat.asend("w20")])

    async def both():
        return await asyncio.gather(*(read(chat_with(generation_config=alike)) for _ in range(3)))

    alike = GenerationConfig(suppress_tokens=[0, 1, 2, 3, 4, 5], max_new_tokens=9)
    expected = chat_with(generation_config=alike).ask("w20").text
    assert asyncio.run(both()) == [expected] * 3


# ---- compiled steps


def test_compiled_steps_say_the_same(messages):
    alike = GenerationConfig(suppress_tokens=[0, 1, 2, 3, 4, 5], max_new_tokens=6)
    eager, compiled = chat_with(generation_config=alike), chat_with(generation_config=alike, compile=True)
    assert messages.about("compile=True")
    for question in ("w20 w21", "w22", "w23 " * 30):
        assert compiled.ask(question).text == eager.ask(question).text


def test_steps_of_a_model_with_states_cannot_be_compiled():
    from support.zoo import animal_of

    model = inject_attention_sinks(animal_of("bamba").build(), S, W)
    refused(ValueError, lambda: StreamingChat(model, word_tokenizer(), compile=True), "compile=True")
