"""A model that serves caches of many sizes keeps no more and more of them."""

import copy
import pickle

import pytest
import torch
from transformers.utils import logging

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.architecture.setup import setup_of
from attention_sinks.architecture.tables import SPARE_TABLES
from references.naive import naive_logits
from support.helpers import (
    LENGTH_DEPENDENT,
    S,
    W,
    assert_close,
    in_parallel,
    random_ids,
    stream,
    streaming_llama,
    tiny_llama,
)

IDS = random_ids(60)
PAIRS = [(sinks, window) for sinks in range(10) for window in range(1, 31)]


def tables_of(model):
    return setup_of(model).tables.known


def test_tables_of_caches_that_are_gone_are_forgotten():
    model = streaming_llama()
    for pair in PAIRS:
        AttentionSinkKVCache(model, *pair)
    assert len(tables_of(model)) <= SPARE_TABLES < len(PAIRS)
    assert_close(stream(model, IDS[None], [20, 1, 39])[0][0], naive_logits(tiny_llama(), IDS, S, W))
    assert len(tables_of(model)) <= SPARE_TABLES


@pytest.mark.parametrize("kind", LENGTH_DEPENDENT)
def test_the_table_of_a_cache_that_lives_is_kept(kind):
    plain, model = tiny_llama(**LENGTH_DEPENDENT[kind]), streaming_llama(**LENGTH_DEPENDENT[kind])
    _, cache = stream(model, IDS[None, :30], cache=AttentionSinkKVCache(model, 2, 9))
    fork, table = copy.deepcopy(cache), cache.table()
    del cache
    for pair in PAIRS:
        AttentionSinkKVCache(model, *pair)
    assert fork.table() is table
    assert_close(stream(model, IDS[None, 30:], [1] * 30, fork)[0][0], naive_logits(plain, IDS, 2, 9)[30:])


def test_tables_of_many_caches_that_live_and_then_do_not():
    model = streaming_llama()
    caches = [AttentionSinkKVCache(model, *pair) for pair in PAIRS]
    assert len(tables_of(model)) >= len(PAIRS)
    del caches
    AttentionSinkKVCache(model, 11, 11)
    assert len(tables_of(model)) <= SPARE_TABLES


def test_sizes_in_threads():
    """Tables are made and forgotten in six threads at once, and every stream has its own."""
    plain, model = tiny_llama(), streaming_llama()
    expected = {pair: naive_logits(plain, IDS, *pair) for pair in PAIRS[10:18]}

    def work(number):
        for pair in PAIRS:
            AttentionSinkKVCache(model, *pair)
            AttentionSinkKVCache(model, pair[0], pair[1] + 40 * number)
        pair = PAIRS[10 + number]
        return pair, stream(model, IDS[None], [20, 1, 39], AttentionSinkKVCache(model, *pair))[0][0]

    for pair, logits in in_parallel(work):
        assert_close(logits, expected[pair])
    assert len(tables_of(model)) <= SPARE_TABLES


def test_an_evicted_table_is_made_again_by_a_call():
    model = streaming_llama()
    _, cache = stream(model, IDS[None, :30])
    tables_of(model).clear()
    assert_close(stream(model, IDS[None, 30:], [1] * 30, cache)[0][0], naive_logits(tiny_llama(), IDS, S, W)[30:])


def test_warnings_about_many_sizes_are_not_kept():
    model, kept = streaming_llama(max_position_embeddings=64), logging.logging.Logger.warning_once.cache_info
    before = kept().currsize
    for window in range(100, 300):
        AttentionSinkKVCache(model, 4, window)
    assert kept().currsize == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_have_tables_of_their_own(copied):
    model = streaming_llama()
    stream(model, IDS[None])
    twin = copied(model)
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.zero_()
    assert_close(stream(twin, IDS[None], [20, 1, 39])[0][0], naive_logits(tiny_llama(), IDS, S, W))


def test_injecting_again_and_again_makes_no_new_classes():
    model = inject_attention_sinks(tiny_llama(), S, W)
    classes = {type(module) for module in model.modules()}
    for pair in PAIRS[:20]:
        inject_attention_sinks(model, *pair)
    assert {type(module) for module in model.modules()} == classes
