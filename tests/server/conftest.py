"""A server over a tiny model, in a thread of this process, and clients of it."""

import copy
from contextlib import contextmanager

import pytest

from attention_sinks import StreamingChat, StreamPool, inject_attention_sinks
from support.helpers import tiny_llama
from support.pools import END, SPEAKS, S, W
from support.server import serving
from support.toy_tokenizers import word_tokenizer


def speaking(**options):
    """A model that says only words without a meaning to the template."""
    model = tiny_llama()
    model.generation_config.update(**SPEAKS | options)
    return inject_attention_sinks(model, S, W)


@pytest.fixture(scope="session")
def model():
    return speaking(eos_token_id=[END, *range(30, 34)])


@pytest.fixture(scope="session")
def endless_model():
    """A model that never ends an answer."""
    return speaking(suppress_tokens=list(range(6)))


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def serve(model, tokenizer):
    """`with serve(folder, rows=4, **settings) as served:` runs a server."""

    @contextmanager
    def run(folder=None, rows=4, pool=None, **settings):
        sessions = None if folder is None else str(folder / "conversations")
        options = {"sessions": sessions, **(pool or {})}
        made = StreamPool(options.pop("model", model), options.pop("tokenizer", tokenizer), rows, **options)
        with serving(made, folder, **settings) as served:
            yield served

    return run


@pytest.fixture
def alone(model, tokenizer):
    """A chat of its own, which says what a client should be told."""

    def make(**options):
        config = copy.deepcopy(model.generation_config)
        config.max_new_tokens = options.pop("max_new_tokens", 1024)
        options.setdefault("tokenizer", tokenizer)
        return StreamingChat(options.pop("model", model), generation_config=config, **options)

    return make
