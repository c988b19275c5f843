"""Turns in a pool: how they are chosen, stopped, refused and read, and what an error does to whom."""

import asyncio
import itertools
import threading
import time

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from attention_sinks import PoolFullError, SessionInUseError, StreamingChat, StreamPool, inject_attention_sinks
from support.helpers import refused, tiny_llama
from support.pools import END, S, W, config
from support.toy_tokenizers import DEFAULT_SYSTEM, thinking_tokenizer, word_tokenizer
from support.zoo import animal_of


class Raises(StoppingCriteria):
    """Breaks after some steps."""

    def __init__(self, steps=3):
        self.steps = steps

    def __call__(self, input_ids, scores, **options):
        self.steps -= 1
        if self.steps < 0:
            raise ArithmeticError("a criterion breaks")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Waits(StoppingCriteria):
    """Holds the pool's thread in the first step until it is let go."""

    def __init__(self):
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, input_ids, scores, **options):
        self.reached.set()
        assert self.go_on.wait(20)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Says(LogitsProcessor):
    """Makes an answer of one word alone."""

    def __init__(self, word):
        self.word = word

    def __call__(self, input_ids, scores):
        scores[:, self.word] = 1e9
        return scores


LONG = config(eos_token_id=END, max_new_tokens=200, suppress_tokens=range(6))  # it does not end by itself
SAMPLED = config(do_sample=True, temperature=2.0, eos_token_id=END)


# ---- how a turn is chosen


def test_each_turn_has_its_own_config_processors_and_criteria(pool_of, alone):
    pool = pool_of(4)
    greedy, short, word = (pool.conversation() for _ in range(3))
    streams = [
        greedy.send("w7 w8"),
        short.send("w7 w8", generation_config=config(max_new_tokens=2)),
        word.send("w7 w8", generation_config=config(max_new_tokens=3), logits_processor=[Says(60)]),
    ]
    for each in streams:
        list(each)
    assert str(streams[0]) == alone(["w7 w8"])[0]
    assert str(streams[1]) == alone(["w7 w8"], config(max_new_tokens=2))[0]
    assert str(streams[2]).split() == ["w54"] * 3
    assert streams[2].usage.tokens_written == 3 and streams[2].finish_reason == "length"


def test_a_seed_gives_the_same_samples_whatever_others_do(pool_of):
    def answers(others):
        pool = pool_of(8)
        busy = [pool.conversation().send(f"w{n}", generation_config=LONG) for n in range(others)]
        each = pool.conversation()
        said = [str(each.ask("w3 w4", generation_config=SAMPLED, seed=5)) for _ in range(3)]
        for one in busy:
            one.close()
        return said

    first = answers(0)
    assert first == answers(3) and len(set(first)) == 3
    other = pool_of(1).conversation()
    assert first[0] != str(other.ask("w3 w4", generation_config=SAMPLED, seed=6))


# ---- stopping


def test_a_stopped_answer_frees_its_row_and_the_conversation_goes_on(pool_of, model, tokenizer):
    pool = pool_of(1)
    one, other = pool.conversation(), pool.conversation()
    answer = one.send("w7", generation_config=LONG)
    said = next(answer)
    waiting = other.send("w9")
    answer.close()
    assert list(waiting) and waiting.finish_reason == "stop"
    while pool.numbers.rows_in_use:
        pass
    assert answer.finish_reason == "interrupted" and answer.text.startswith(said)
    count = answer.usage.tokens_written
    chat = StreamingChat(model, tokenizer, generation_config=config(eos_token_id=END, max_new_tokens=count))
    assert answer.text.split() == str(chat.ask("w7")).split()
    chat.generation_config = config()
    assert str(one.ask("w9")) == str(chat.ask("w9"))
    assert pool.numbers.turns_stopped == 1


def test_dropping_the_answer_stops_it(pool_of):
    pool = pool_of(1)
    for _ in pool.conversation().send("w7", generation_config=LONG):
        break
    assert list(pool.conversation().send("w9"))
    assert pool.numbers.turns_stopped == 1


def test_a_turn_can_be_stopped_while_it_waits_or_reads(pool_of):
    pool, gate = pool_of(1), Waits()
    busy = pool.conversation().send("w7", stopping_criteria=[gate])
    assert gate.reached.wait(20)
    waits, conversation = pool.conversation().send("w8"), pool.conversation()
    reads = conversation.send("w8 " * 3000)
    waits.close()
    gate.go_on.set()
    list(busy)
    while not pool.numbers.tokens_read > 100:
        pass
    conversation.stop()
    assert list(reads) == [] and reads.finish_reason == "interrupted" == waits.finish_reason
    assert conversation.turns_in_window == [] and str(conversation.ask("w1")) == str(pool.conversation().ask("w1"))


def test_closing_the_pool_ends_all_answers(pool_of):
    pool = pool_of(2)
    answers = [pool.conversation().send(f"w{n}", generation_config=LONG) for n in range(5)]
    next(answers[0])
    pool.close()
    assert [bool(list(answer)) or answer.finish_reason for answer in answers[2:]] == ["interrupted"] * 3
    refused(RuntimeError, lambda: pool.conversation().send("w1"), "closed")


def test_a_pool_that_is_dropped_ends_its_thread(model, tokenizer):
    before = threading.active_count()
    StreamPool(model, tokenizer).conversation().ask("w1", generation_config=config())
    assert threading.active_count() == before


# ---- bad input and errors


def test_an_error_in_a_criterion_ends_that_answer_alone(pool_of, alone):
    pool = pool_of(3)
    one, breaks, other = (pool.conversation() for _ in range(3))
    answers = [
        one.send("w7 w1"),
        breaks.send("w8", generation_config=LONG, stopping_criteria=[Raises()]),
        other.send("w9 w2"),
    ]
    with pytest.raises(ArithmeticError):
        list(answers[1])
    assert ["".join(answers[0]), "".join(answers[2])] == [alone(["w7 w1"])[0], alone(["w9 w2"])[0]]
    breaks.ask("w5")
    assert breaks.turns_in_window[-1] == 2
    assert pool.numbers.turns_failed == 1


def test_an_error_of_the_model_ends_the_answers_and_nothing_is_lost(pool_of, alone):
    model = inject_attention_sinks(tiny_llama(), S, W)
    pool = pool_of(2, model=model)
    one, other = pool.conversation(), pool.conversation()
    calls = []

    def fail(module, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if calls.count(2) == 3:
            raise MemoryError("no room")

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    answers = [one.send("w7", generation_config=LONG), other.send("w8", generation_config=LONG)]
    for answer in answers:
        with pytest.raises(MemoryError):
            list(answer)
    handle.remove()
    for conversation, answer, word in zip((one, other), answers, ("w7", "w8"), strict=True):
        chat = StreamingChat(model, word_tokenizer())
        chat.generation_config = config(eos_token_id=END, max_new_tokens=answer.usage.tokens_written)
        assert answer.text.split() == str(chat.ask(word)).split()
        chat.generation_config = config()
        assert str(conversation.ask("w9")) == str(chat.ask("w9"))


def test_a_full_pool_refuses_or_lets_wait(pool_of, alone):
    pool, gate = pool_of(1, max_waiting=1), Waits()
    busy = pool.conversation().send("w7", stopping_criteria=[gate])
    assert gate.reached.wait(20)
    refused(PoolFullError, lambda: pool.conversation().send("w8", wait=False), "wait=True")
    waits, third = pool.conversation().send("w8"), pool.conversation()
    refused(PoolFullError, lambda: third.send("w9"), "max_waiting")
    assert pool.numbers.waiting == 1 and pool.numbers.turns_refused == 2
    gate.go_on.set()
    assert "".join(busy) == alone(["w7"])[0] and "".join(waits) == alone(["w8"])[0]
    assert str(third.ask("w9", wait=True)) == alone(["w9"])[0]


def test_a_conversation_takes_one_turn_at_a_time(pool_of):
    pool = pool_of(2)
    for conversation in (pool.conversation(), pool.conversation("name")):
        answer = conversation.send("w7", generation_config=LONG)
        refused(SessionInUseError, lambda each=conversation: each.send("w8"), "stop")
        answer.close()
    busy = pool.conversation("name")
    while pool.numbers.rows_in_use:
        pass
    answer = busy.send("w1", generation_config=LONG)
    next(answer)
    with pytest.raises(SessionInUseError):
        pool.conversation("name").ask("w2")


BAD = [
    ({"rows": 0}, ValueError, "rows=0"),
    ({"rows": 2.0}, TypeError, "rows=2.0"),
    ({"chunk_size": 0}, ValueError, "chunk_size"),
    ({"max_waiting": -1}, ValueError, "max_waiting"),
    ({"shared_beginnings": True}, TypeError, "shared_beginnings"),
    ({"max_session_bytes": 5}, ValueError, "sessions"),
    ({"thoughts": "lose"}, ValueError, "thoughts"),
    ({"attention_sink_size": -1}, ValueError, "attention_sink_size"),
    ({"system": 3}, TypeError, "system"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=lambda value: str(value)[:40])
def test_what_a_pool_refuses(model, tokenizer, options, error, words):
    before = threading.active_count()
    refused(error, lambda: StreamPool(model, tokenizer, **options), words)
    assert threading.active_count() == before


def test_what_a_conversation_refuses(pool_of):
    pool = pool_of(1)
    conversation = pool.conversation()
    refused(TypeError, lambda: pool.conversation(sistem="w1"), "sistem")
    refused(TypeError, lambda: conversation.send(3), "message")
    refused(ValueError, lambda: conversation.send(["w1", "w2"]), "a conversation for each")
    refused(TypeError, lambda: conversation.send("w1", seed="one"), "seed")
    refused(ValueError, lambda: conversation.ask("w1", generation_config=config(num_beams=3)), "num_beams")
    refused(ValueError, lambda: conversation.ask([{"role": "assistant", "content": "w1"}]), "role")
    assert str(conversation.ask("w1")) == str(pool.conversation().ask("w1"))


# ---- event loops


def test_many_tasks_of_one_event_loop(pool_of, alone):
    pool = pool_of(4)

    async def talk(number):
        conversation = pool.conversation()
        first = [piece async for piece in conversation.asend(f"w{number}")]
        return ["".join(first), str(await conversation.aask("w3"))]

    async def all_of_them():
        return await asyncio.gather(*(talk(number) for number in range(40)))

    assert asyncio.run(all_of_them()) == [alone([f"w{number}", "w3"]) for number in range(40)]


def test_cancelling_a_task_stops_the_answer(pool_of):
    pool = pool_of(1)

    async def read():
        async for _ in pool.conversation().send(
            "w7", generation_config=config(eos_token_id=END, max_new_tokens=100000, suppress_tokens=range(6))
        ):
            pass

    async def cancel():
        task = asyncio.create_task(read())
        while not pool.numbers.tokens_written > 3:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await pool.conversation().aask("w8")

    assert asyncio.run(cancel()).finish_reason and pool.numbers.turns_stopped == 1


# ---- how messages are read


def test_others_make_steps_while_a_long_message_is_read(pool_of):
    model = inject_attention_sinks(tiny_llama(), S, W)
    pool, calls = pool_of(2, model=model, chunk_size=8), []
    talker, reader = pool.conversation(), pool.conversation()
    answer = talker.send(
        "w7", generation_config=config(eos_token_id=END, max_new_tokens=4000, suppress_tokens=range(6))
    )
    next(answer)
    handle = model.register_forward_pre_hook(
        lambda *call: calls.append(call[2]["input_ids"].shape[1]), with_kwargs=True
    )
    reader.ask("w1 " * 400)
    handle.remove()
    answer.close()
    pieces = [size for size in calls if size > 1]
    assert max(pieces) == 8 and sum(pieces) > 400
    assert all(1 in pair for pair in zip(calls, calls[1:], strict=False))  # a step stands between two pieces


def test_short_messages_share_what_is_read_between_two_steps(pool_of):
    model = inject_attention_sinks(tiny_llama(), S, W)
    pool, calls, gate = pool_of(8, model=model, chunk_size=32), [], Waits()
    busy = pool.conversation().send("w7", generation_config=LONG, stopping_criteria=[gate])
    assert gate.reached.wait(20)
    others = [pool.conversation().send(f"w{n}") for n in range(4)]
    time.sleep(0.3)  # they are awake, and wait until the step is over
    model.register_forward_pre_hook(lambda *call: calls.append(call[2]["input_ids"].shape[1]), with_kwargs=True)
    gate.go_on.set()
    for other in others:
        list(other)
    busy.close()
    between = [list(sizes) for is_read, sizes in itertools.groupby(calls, key=lambda size: size > 1) if is_read]
    assert any(len(sizes) > 1 for sizes in between) and all(sum(sizes) <= 32 for sizes in between)


SYSTEM = " ".join(f"w{number}" for number in range(30))


def test_a_shared_beginning_is_read_once(pool_of, alone):
    pool = pool_of(4, system=SYSTEM, chunk_size=8)
    fed = len(pool.conversation()._talks.new({}).prefix)
    conversations = [pool.conversation() for _ in range(6)]
    answers = [each.send(f"w{number} w3") for number, each in enumerate(conversations)]
    for answer in answers:
        list(answer)
    sizes = {"pin_system_prompt": True}
    assert [str(answer) for answer in answers] == [alone([f"w{n} w3"], system=SYSTEM, **sizes)[0] for n in range(6)]
    numbers, read = pool.numbers, sum(answer.usage.tokens_read for answer in answers)
    assert fed > 30 and numbers.tokens_shared == 5 * fed and numbers.tokens_read == read - 5 * fed
    pool.conversation(system="w5 w6").ask("w3")
    assert pool.numbers.tokens_shared == 5 * fed


def test_a_beginning_whose_reader_is_stopped_is_read_by_the_next(pool_of):
    model = inject_attention_sinks(tiny_llama(), S, W)
    pool, reads = pool_of(4, model=model, system=SYSTEM), []

    def fail(module, args, kwargs):
        reads.append(kwargs["input_ids"].shape[1])
        if len(reads) == 1:
            raise MemoryError("no room")

    model.register_forward_pre_hook(fail, with_kwargs=True)
    answers = [pool.conversation().send("w3") for _ in range(3)]
    said = []
    for answer in answers:
        try:
            said.append("".join(answer))
        except MemoryError:
            said.append(None)
    assert said.count(None) == 1 and len(set(said)) == 2


# ---- models and templates of every kind


@pytest.mark.parametrize("name", ["bamba", "falcon", "mistral", "deepseek_v3", "mpt"])
def test_other_architectures(pool_of, alone, name):
    model = inject_attention_sinks(animal_of(name).build(), S, W)
    pool = pool_of(4, model=model, generation_config=config(eos_token_id=END, max_new_tokens=6))
    conversations = [pool.conversation() for _ in range(5)]
    said = [[] for _ in conversations]
    for turn in range(3):
        answers = [each.send(f"w{number} w{turn}" + " w3" * number) for number, each in enumerate(conversations)]
        for number, answer in enumerate(answers):
            said[number].append("".join(answer))
    settings = {"model": model, "generation_config": config(eos_token_id=END, max_new_tokens=6)}
    expected = [alone([f"w{n} w{t}" + " w3" * n for t in range(3)], **settings) for n in range(5)]
    assert said == expected


def test_thoughts_are_forgotten_beside_the_steps_of_others(pool_of, alone):
    settings = {"tokenizer": thinking_tokenizer(), "thoughts": "forget"}
    pool = pool_of(3, **settings)
    conversations = [pool.conversation() for _ in range(4)]
    messages = [[f"w{number} w{turn}" for turn in range(4)] for number in range(4)]
    said = [[] for _ in conversations]
    for turn in range(4):
        answers = [each.send(messages[number][turn]) for number, each in enumerate(conversations)]
        for number, answer in enumerate(answers):
            said[number].append("".join(piece for piece in answer if not piece.is_thought))
    assert said == [alone(each, **settings) for each in messages]


def test_a_default_system_prompt_is_kept_for_ever(pool_of, alone):
    settings = {"tokenizer": word_tokenizer(DEFAULT_SYSTEM)}
    messages = [f"w{turn} w1 w2" for turn in range(8)]
    conversation = pool_of(2, **settings).conversation()
    assert [str(conversation.ask(message)) for message in messages] == alone(messages, **settings)


def test_compiled_steps_are_one_graph(pool_of, alone):
    torch._dynamo.reset()
    pool = pool_of(3, compile=True)
    conversations = [pool.conversation() for _ in range(5)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(2):
            answers = [each.send(f"w{number} w{turn}") for number, each in enumerate(conversations)]
            said = ["".join(answer) for answer in answers]
    assert said == [alone([f"w{n} w0", f"w{n} w1"])[1] for n in range(5)]
    refused(
        ValueError,
        lambda: pool_of(1, model=inject_attention_sinks(animal_of("bamba").build(), S, W), compile=True),
        "compile",
    )
