"""Answers that nobody has to look at: when one has been stopped, its conversation is free and has what was said."""

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
from transformers import GenerationConfig

from attention_sinks import StreamPool
from attention_sinks.server.conversations import Conversations
from attention_sinks.server.followed import FollowedAnswers
from attention_sinks.server.histories import Histories

SECONDS = 0.5


@pytest.fixture
def conversations(endless_model, tokenizer):
    histories = Histories(None)
    with StreamPool(endless_model, tokenizer, 1) as pool:
        yield Conversations(pool, histories, "tiny", 8)
    histories.close()


@pytest.fixture
def held(endless_model):
    """`with held():` the model waits in its next step, for a fifth of a second after the block."""
    goes = threading.Event()
    goes.set()
    handle = endless_model.lm_head.register_forward_pre_hook(lambda *_: goes.wait() and None)

    @contextmanager
    def hold():
        goes.clear()
        try:
            yield
        finally:
            threading.Timer(0.2, goes.set).start()

    yield hold
    handle.remove()


async def begun(conversations, seconds=60.0):
    """An answer of three tokens or more, none of which has been read: the event loop had no time for it."""
    answers = FollowedAnswers(
        conversations, GenerationConfig(suppress_tokens=list(range(6)), max_new_tokens=8192), seconds
    )
    followed = await answers.begin("me", "talk", "w7")
    while followed.answer.usage.tokens_written < 3:
        assert followed.answer.finish_reason is None, "it has ended"
        time.sleep(0.01)
    return answers, followed


async def stand_after(answers):
    """Where the conversation stands once its answer is over."""
    async for _ in answers.looks("me", "talk"):
        pass
    return await answers.stand("me", "talk")


def test_a_stopped_answer_is_over_when_its_conversation_is_free(conversations, held):
    async def stop():
        answers, followed = await begun(conversations)
        with held():
            so_far = followed.answer.text
            followed.stop()
        return followed, so_far, await stand_after(answers)

    followed, so_far, stand = asyncio.run(stop())
    assert followed.error is None and conversations.pool.numbers.turns_stopped == 1
    assert so_far and stand.messages[1]["content"].startswith(so_far)


def test_so_is_one_that_took_too_long(conversations, held):
    async def outlast():
        answers, followed = await begun(conversations, SECONDS)
        with held():
            await asyncio.sleep(SECONDS)
        return followed, await stand_after(answers)

    followed, stand = asyncio.run(outlast())
    assert followed.error.status == 504 and conversations.pool.numbers.turns_stopped == 1
    assert stand.messages[1]["content"]
