"""A pool over a tiny model whose words mean nothing, and the same conversations alone."""

import pytest

from attention_sinks import StreamingChat, StreamPool, inject_attention_sinks
from support.helpers import tiny_llama
from support.pools import S, W, config
from support.toy_tokenizers import word_tokenizer


@pytest.fixture(scope="session")
def model():
    return inject_attention_sinks(tiny_llama(), S, W)


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def pool_of(model, tokenizer):
    """`pool_of(rows=4, …)`: an open pool, which is closed after the test."""
    made = []

    def make(*arguments, **options):
        options.setdefault("generation_config", config())
        made.append(StreamPool(options.pop("model", model), options.pop("tokenizer", tokenizer), *arguments, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def alone(model, tokenizer):
    """`alone(messages)`: the answers to these messages in a chat of their own."""

    def answers(messages, generation_config=None, **options):
        options.setdefault("generation_config", generation_config or config())
        chat = StreamingChat(options.pop("model", model), options.pop("tokenizer", tokenizer), **options)
        return [str(chat.ask(message)) for message in messages]

    return answers
