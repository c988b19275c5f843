"""One model in several threads, each with a stream of its own: nothing about a stream lives on the model."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from helpers import assert_close, assert_tokens_follow, cut, random_ids, stream, tiny_llama
from naive import naive_logits
from test_rope import LENGTH_DEPENDENT

THREADS = 6
SETTINGS = [(4, 12), (4, 20), (0, 9), (1, 30), (2, 11), (8, 5)]
MODELS = {"default": {}, **LENGTH_DEPENDENT}


def in_parallel(work):
    """work(number of the thread) in every thread, all starting together; results in order."""
    barrier = Barrier(THREADS)

    def run(number):
        barrier.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(timeout=300) for future in [pool.submit(run, number) for number in range(THREADS)]]


@pytest.mark.parametrize("kind", MODELS)
def test_streams_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]))
    ids = [random_ids(100 + 7 * number, seed=number) for number in range(THREADS)]

    def work(number):
        cache = AttentionSinkKVCache(model, *SETTINGS[number])
        return stream(model, ids[number][None], cut(len(ids[number]), [1, 1, 1 + number]), cache)[0][0]

    for number, logits in enumerate(in_parallel(work)):
        assert_close(logits, naive_logits(plain, ids[number], *SETTINGS[number]))


@pytest.mark.parametrize("kind", MODELS)
def test_stateless_calls_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)
    ids = [random_ids(30 + 20 * number, seed=number) for number in range(THREADS)]

    def work(number):
        with torch.no_grad():
            return [model(ids[number][None], use_cache=False).logits[0] for _ in range(15)]

    for number, calls in enumerate(in_parallel(work)):
        expected = naive_logits(plain, ids[number], 4, 12)
        for logits in calls:
            assert_close(logits, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_generate_in_threads(kind):
    plain, model = tiny_llama(**MODELS[kind]), inject_attention_sinks(tiny_llama(**MODELS[kind]), 4, 12)

    def work(number):
        return model.generate(random_ids(1, 5 + 6 * number, seed=number), max_new_tokens=40, do_sample=False)[0]

    for number, sequence in enumerate(in_parallel(work)):
        assert_tokens_follow(naive_logits(plain, sequence, 4, 12), sequence, 5 + 6 * number)
