"""AttentionSinkKVCache: counters, sizes, rows that move, copies, and staying small for ever."""

import copy
import gc
import tracemalloc

import pytest
import torch
import transformers

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.contract import left_padded, pattern, stream_rows
from support.helpers import (
    S,
    W,
    assert_close,
    cut,
    random_ids,
    storage_bytes,
    storages_of,
    stored_bytes,
    stream,
    tiny_llama,
)


def test_is_a_transformers_cache(model):
    assert isinstance(AttentionSinkKVCache(model), transformers.Cache)


def test_an_empty_cache(model):
    cache = AttentionSinkKVCache(model)
    assert cache.get_seq_length() == 0
    stream(model, random_ids(1, 3), cache=cache)
    assert cache.get_seq_length() == 3


def test_the_model_makes_and_returns_its_own_cache(model):
    outputs = model(random_ids(1, 5))
    assert isinstance(outputs.cache, AttentionSinkKVCache)
    assert outputs.cache.get_seq_length() == 5


def test_a_given_cache_is_the_one_returned(model):
    cache = AttentionSinkKVCache(model)
    assert model(random_ids(1, 5), cache=cache).cache is cache


def test_counts_columns_and_tokens(model):
    rows = [random_ids(40), random_ids(3, seed=1)]
    _, cache = stream_rows(model, rows, [left_padded([38, 2]), left_padded([2, 1])])
    assert cache.get_seq_length() == 40
    for counter, expected in ((cache.tokens_seen, [40, 3]), (cache.tokens_cached, [S + W, 3])):
        assert counter.dtype == torch.int64 and counter.tolist() == expected


def test_the_counters_handed_out_do_not_reach_into_the_cache(model):
    _, cache = stream(model, random_ids(1, 5))
    cache.tokens_seen.zero_()
    cache.tokens_cached.zero_()
    assert cache.tokens_seen.tolist() == [5] and cache.tokens_cached.tolist() == [5]


def test_repr_tells_what_matters(model):
    _, cache = stream(model, random_ids(2, 40))
    text = repr(cache)
    assert "AttentionSinkKVCache" in text and str(S) in text and str(W) in text and "40" in text
    assert "AttentionSinkKVCache" in repr(AttentionSinkKVCache(model))


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sinks, window", [(4, 12), (0, 16), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nbytes_is_the_formula_and_the_storage(heads, rows, sinks, window, dtype):
    plain = tiny_llama(num_key_value_heads=heads, head_dim=24).to(dtype)
    _, cache = stream(inject_attention_sinks(plain, sinks, window), random_ids(rows, 50), [20, 30])
    numbers_per_head = (sinks + window + 1) * (24 + 24) + sinks * 24
    keys_and_values = 2 * rows * heads * numbers_per_head * dtype.itemsize
    assert cache.nbytes == stored_bytes(cache)
    counters = cache.nbytes - keys_and_values
    assert 0 <= counters <= 64 * (rows + 2), f"{counters} bytes beside keys and values"


def test_the_whole_cache_is_there_from_the_first_token(model):
    _, cache = stream(model, random_ids(1, 1))
    before = cache.nbytes
    stream(model, random_ids(1, 200), cut(200, [1, 50]), cache)
    assert cache.nbytes == before


def live_tensor_bytes():
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not the fake tensors of a compiler, which have no storage
    tensors = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return storage_bytes({tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values())


def test_twenty_thousand_tokens_allocate_nothing_that_stays():
    model = inject_attention_sinks(tiny_llama(num_hidden_layers=1, hidden_size=32, num_attention_heads=2), S, W)
    ids = random_ids(1, 20_000)
    _, cache = stream(model, ids[:, :100])

    def feed(start, end):
        with torch.no_grad():
            for t in range(start, end):
                model(ids[:, t : t + 1], cache=cache)

    feed(100, 1_000)
    places = storages_of(cache)
    tensor_bytes, objects = live_tensor_bytes(), len(gc.get_objects())
    feed(1_000, 18_000)
    assert live_tensor_bytes() <= tensor_bytes
    assert len(gc.get_objects()) <= objects + 500  # a thirtieth of an object a token
    tracemalloc.start()  # all of Python's own memory; slow, so for the last part only
    feed(18_000, 19_000)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    feed(19_000, 20_000)
    gc.collect()
    growth = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert growth < 25_000, f"{growth} bytes for 1,000 tokens"  # free lists move by some thousands
    assert storages_of(cache) == places
    assert cache.tokens_seen.tolist() == [20_000]


def test_reset_makes_an_empty_cache(model):
    _, cache = stream(model, random_ids(2, 60, seed=1), [10, 50])
    cache.reset()
    assert cache.get_seq_length() == 0
    ids = random_ids(2, 60)
    again, _ = stream(model, ids, [1] * 20 + [40], cache)
    fresh, _ = stream(model, ids, [60])
    assert_close(again, fresh)
    assert cache.tokens_seen.tolist() == [60, 60]


def test_a_reset_cache_takes_another_batch_size(model):
    _, cache = stream(model, random_ids(2, 30, seed=1))
    cache.reset()
    logits, _ = stream(model, random_ids(3, 30), cache=cache)
    assert_close(logits, stream(model, random_ids(3, 30))[0])


# Three streams of different lengths; every way to rearrange rows, and which old row each new one continues.
REARRANGEMENTS = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
}


@pytest.mark.parametrize("filled", [[5, 3, 1], [17, 16, 15], [90, 40, 3]], ids=str)
@pytest.mark.parametrize("way", REARRANGEMENTS)
def test_rows_take_their_streams_along(model, way, filled):
    rearrange, sources = REARRANGEMENTS[way]
    starts = [random_ids(count, seed=r) for r, count in enumerate(filled)]
    _, cache = stream_rows(model, starts, [left_padded(filled)])
    rearrange(cache)
    assert cache.tokens_seen.tolist() == [filled[s] for s in sources]
    assert cache.nbytes == stored_bytes(cache)
    rests = [random_ids(50, seed=10 + r) for r in range(len(sources))]
    logits, _ = stream_rows(
        model, rests, [left_padded([30] * len(rests))] + [left_padded([1] * len(rests))] * 20, cache
    )
    for source, rest, row in zip(sources, rests, logits, strict=True):
        assert_close(row, naive_logits(tiny_llama(), torch.cat([starts[source], rest]), S, W)[filled[source] :])


def test_rearranged_rows_share_no_memory(model):
    """Two rows that continue the same stream must not write into each other."""
    _, cache = stream(model, random_ids(1, 30))
    cache.batch_repeat_interleave(2)
    rests = [random_ids(30, seed=1), random_ids(30, seed=2)]
    logits, _ = stream(model, torch.stack(rests), [1] * 30, cache)
    for row, rest in zip(logits, rests, strict=True):
        assert_close(row, naive_logits(tiny_llama(), torch.cat([random_ids(1, 30)[0], rest]), S, W)[30:])


@pytest.mark.parametrize("filled", [3, 17, 100])
def test_a_copy_goes_its_own_way(model, filled):
    start, ways = random_ids(filled), [random_ids(40, seed=1), random_ids(40, seed=2)]
    _, cache = stream(model, start[None])
    caches = [cache, copy.deepcopy(cache)]
    parts = [[], []]
    for t in range(40):
        for way in (0, 1):
            parts[way].append(stream(model, ways[way][None, t : t + 1], cache=caches[way])[0][0])
    for way in (0, 1):
        expected = naive_logits(tiny_llama(), torch.cat([start, ways[way]]), S, W)
        assert_close(torch.cat(parts[way]), expected[filled:])


def test_the_cache_keeps_its_own_settings(model):
    ids = random_ids(80)
    cache = AttentionSinkKVCache(model, attention_sink_size=2, attention_sink_window_size=9)
    first, _ = stream(model, ids[None, :30], cache=cache)
    inject_attention_sinks(model, 1, 5)
    second, _ = stream(model, ids[None, 30:], [1] * 20 + [30], cache)
    assert_close(torch.cat([first, second], dim=1)[0], naive_logits(tiny_llama(), ids, 2, 9))


def test_one_setting_given_the_other_is_the_models(model):
    ids = random_ids(60)
    for settings, (sinks, window) in (
        ({"attention_sink_size": 1}, (1, W)),
        ({"attention_sink_window_size": 5}, (S, 5)),
    ):
        logits, _ = stream(model, ids[None], cache=AttentionSinkKVCache(model, **settings))
        assert_close(logits[0], naive_logits(tiny_llama(), ids, sinks, window))


def test_a_row_of_padding_alone_waits(model):
    rows = [random_ids(40), random_ids(20, seed=1)]
    shapes = [pattern("x" * 19, "." * 19), pattern("x", "x"), pattern("x" * 20, "." + "x" * 19)]
    logits, cache = stream_rows(model, rows, shapes)
    for row, row_logits in zip(rows, logits, strict=True):
        assert_close(row_logits, naive_logits(tiny_llama(), row, S, W))
    assert cache.tokens_seen.tolist() == [40, 20]
