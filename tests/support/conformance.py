"""What every architecture must do: checks over one tiny model, in a few seconds. See `zoo` for the models."""

import copy
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, remove_attention_sinks
from attention_sinks.architecture.setup import setup_of
from attention_sinks.cache.layers import LatentLayer
from attention_sinks.cache.sink_layer import SinkLayer
from attention_sinks.cache.states_layer import StatesLayer
from attention_sinks.positions.rotary import Rotary
from attention_sinks.streaming import forward
from references.replay import decoder_layers, replay_logits
from support.contract import left_padded, stream_rows
from support.features import features_of
from support.helpers import (
    TEETH,
    TOLERANCE,
    assert_close,
    assert_tokens_follow,
    cut,
    largest_difference,
    random_ids,
    storage_bytes,
    storages_of,
    stored_bytes,
    stream,
)
from support.zoo import ALWAYS_SEVERAL

SINKS, WINDOW = 4, 12
ROOM = SINKS + WINDOW + 1
LENGTH = 6 * ROOM


def streaming(animal, sinks=SINKS, window=WINDOW, implementation=None):
    return inject_attention_sinks(animal.build(implementation), sinks, window)


def expected(animal, ids, sinks=SINKS, window=WINDOW):
    return replay_logits(animal.build(), ids, sinks, window)


def has_what_the_row_claims(animal):
    found = features_of(streaming(animal))
    assert animal.claims <= found, f"missing: {sorted(animal.claims - found)}; found: {sorted(found)}"
    return found


def any_chunking_equals_the_reference(animal):
    """Contract 1 and 4, by every attention implementation."""
    ids = random_ids(LENGTH)
    right = expected(animal, ids)
    assert 0.3 < right.std() < 3
    for implementation in animal.implementations:
        model = streaming(animal, implementation=implementation)
        for lengths in ([1], [LENGTH], [7], [LENGTH - 1, 1], [1, 3 * ROOM, 2, 5, ROOM]):
            logits, cache = stream(model, ids[None], cut(LENGTH, lengths))
            assert_close(logits[0], right)
            assert cache.tokens_seen.tolist() == [LENGTH] and cache.tokens_cached.tolist() == [ROOM - 1]


def every_mistake_shows(animal):
    """A window off by one, a sink missing or a query off by one would have been seen."""
    ids, late = random_ids(LENGTH), slice(2 * ROOM, None)
    right = expected(animal, ids)[late]
    model = streaming(animal)
    for sinks, window in ((SINKS, WINDOW + 1), (SINKS - 1, WINDOW)):
        assert largest_difference(expected(animal, ids, sinks, window)[late], right) > TEETH
    if places_matter(model):
        for lengths in ([1], [LENGTH]):
            with queries_off_by_one():
                wrong = stream(model, ids[None], cut(LENGTH, lengths))[0][0, late]
            assert largest_difference(wrong, right) > TEETH


def places_matter(model):
    """Whether any layer with sinks knows where its keys are."""
    setup = setup_of(model)
    table = setup.layer_table(setup.settings)
    pairs = zip(table.reaches, table.positions, strict=True)
    with_sinks = [position for reach, position in pairs if reach and reach.sink_size]
    return any(position.rotates if isinstance(position, Rotary) else position is not None for position in with_sinks)


@contextmanager
def queries_off_by_one():
    """The library, broken: every query stands one further from the sinks than it should."""

    def broken(make):
        def step(*args):
            made = make(*args)
            nearer = None if made.delta is None else made.delta - 1
            return replace(made, delta=nearer, cache_position=made.cache_position + 1)

        return step

    names = ("plan_token", "plan_block")
    with mock.patch.multiple(forward, **{name: broken(getattr(forward, name)) for name in names}):
        yield


def a_row_gives_what_it_gives_alone(animal):
    """Contract 2: left padding in every turn, with either form of the mask."""
    turns = [[ROOM + 5, 3, 1], [2, ROOM - 1, 4], [1, 1, 1], [9, 2 * ROOM, 0]]
    if not animal.pads_later:
        turns = [turns[0], [ROOM, ROOM, ROOM], [1, 1, 1]]
    rows = [random_ids(sum(counts), seed=r) for r, counts in enumerate(zip(*turns, strict=True))]
    patterns = [left_padded(counts, max(counts) + (i == 0)) for i, counts in enumerate(turns)]
    model, right = streaming(animal), [expected(animal, row) for row in rows]
    for mask_all_columns in (False, True):
        logits, cache = stream_rows(model, rows, patterns, mask_all_columns=mask_all_columns)
        for row_logits, row_right in zip(logits, right, strict=True):
            assert_close(row_logits, row_right)
        assert cache.tokens_seen.tolist() == [len(row) for row in rows]


def short_streams_are_plain_transformers(animal):
    """Contract 3, with a cache and without."""
    ids = random_ids(2, ROOM)
    with torch.no_grad():
        plain = animal.build()(ids).logits
        assert_close(streaming(animal)(ids, use_cache=False).logits, plain)
        assert_close(streaming(animal)(ids[:, :1], use_cache=False).logits, animal.build()(ids[:, :1]).logits)
    for lengths in ([ROOM], [1], [5]):
        assert_close(stream(streaming(animal), ids, cut(ROOM, lengths))[0], plain)


def no_cache_gives_the_same_logits(animal):
    ids = random_ids(LENGTH)
    with torch.no_grad():
        outputs = streaming(animal)(ids[None], use_cache=False)
    assert outputs.cache is None
    assert_close(outputs.logits[0], expected(animal, ids))


def the_smallest_sizes_work(animal):
    ids = random_ids(40)
    for sinks, window in ((0, 5), (2, 1), (0, 1)):
        for lengths in ([1], [7], [40]):
            logits, _ = stream(streaming(animal, sinks, window), ids[None], cut(40, lengths))
            assert_close(logits[0], expected(animal, ids, sinks, window))


def memory_is_constant(animal):
    """Contract 5: the formula, the storages, and that nothing moves."""
    model, ids = streaming(animal), random_ids(2, 8 * ROOM)
    _, cache = stream(model, ids[:, : 4 * ROOM])
    before = storages_of(cache)
    assert cache.nbytes == stored_bytes(cache) == formula(cache)
    for lengths in ([1], [7], [3 * ROOM]):
        stream(model, ids[:, : 2 * ROOM], cut(2 * ROOM, lengths), cache)
        assert storages_of(cache) == before


def formula(cache):
    """rows x kv heads x [(S+W+1)(d_k + d_v) + S d] x itemsize over our layers, and what native layers hold.

    Beside them the counters: per row two numbers and a bool for each column of the smallest ring, and one number.
    """
    total = cache.batch_size * (2 * 8 + cache.streams.room) + 8
    for layer in cache.layers:
        if isinstance(layer, StatesLayer):
            total += storage_bytes(StatesLayer.tensors.fget(layer))
        if isinstance(layer, SinkLayer) and layer.is_initialized:
            rows, heads, _, key_width = layer.keys.shape
            value_width, slots = layer.values.shape[3], layer.reach.visible_size
            rotated_width = (value_width if isinstance(layer, LatentLayer) else key_width) * layer.rotates
            numbers = slots * (key_width + value_width) + layer.reach.sink_size * rotated_width
            total += rows * heads * numbers * layer.keys.itemsize
    return total


def caches_do_not_meet(animal):
    """Contract 7: caches of other sizes in turns on one model, one of them forked on the way."""
    model = streaming(animal)
    sizes = [(SINKS, WINDOW), (0, 5), (1, 9)]
    ids = [random_ids(4 * ROOM + 3 * i, seed=i) for i in range(len(sizes))]
    caches, parts = [AttentionSinkKVCache(model, *size) for size in sizes], [[] for _ in sizes]
    fed = 0
    for length in (5, 1, 1, 30, 1, 2, 100):
        for cache, row, part in zip(caches, ids, parts, strict=True):
            if len(call := row[fed : fed + length]):
                part.append(stream(model, call[None], cache=cache)[0][0])
        fed += length
        caches[0] = copy.deepcopy(caches[0])
    for size, row, part in zip(sizes, ids, parts, strict=True):
        assert_close(torch.cat(part), expected(animal, row, *size))


def saved_and_cropped_streams_go_on(animal):
    """Contract 7: loading goes on bit for bit, cropping as if what it took back had never been fed."""
    model, ids = streaming(animal), random_ids(LENGTH)
    _, cache = stream(model, ids[None, :50], [20, 1, 29])
    with tempfile.TemporaryDirectory() as folder:
        if setup_of(model).has_states:
            with pytest.raises(NotImplementedError):
                cache.save(f"{folder}/cache")
            with pytest.raises(NotImplementedError):
                cache.crop(-1)
            return
        cache.save(f"{folder}/cache")
        loaded = AttentionSinkKVCache.load(f"{folder}/cache", model)
    right = stream(model, ids[None, 50:70], [1, 19], cache)[0]
    assert torch.equal(stream(model, ids[None, 50:70], [1, 19], loaded)[0], right)
    loaded.activate_past_recording()
    stream(model, random_ids(1, 30, seed=9), [1, 1, 28], loaded)
    loaded.crop(-30)
    assert_close(stream(model, ids[None, 70:], [1, 31], loaded)[0][0], expected(animal, ids)[70:])


def rows_come_and_go(animal):
    """A row gives what it gives alone: stacked, put in the place of an idle one, taken out, and begun where one was."""
    model, calls = streaming(animal), [1, 5, 1]
    rest = sum(calls)
    starts = [3, ROOM + 5, 2 * ROOM]
    rows = [random_ids(start + 2 * rest, seed=start) for start in starts]
    caches = [stream(model, row[None, :start])[1] for row, start in zip(rows, starts, strict=True)]
    alone = [
        stream(model, row[None, start:], calls * 2, copy.deepcopy(cache))[0][0]
        for row, start, cache in zip(rows, starts, caches, strict=True)
    ]
    batch = AttentionSinkKVCache.stack([caches[1], AttentionSinkKVCache(model), caches[2]])
    places = storages_of(batch)
    idle = torch.tensor([[1], [0], [1]]).expand(-1, rest) if animal.pads_later else torch.ones(3, rest).long()
    ids, done = torch.stack([rows[1][starts[1] :], random_ids(2 * rest), rows[2][starts[2] :]]), 0
    for length in calls:
        new = slice(done, done + length)
        with torch.no_grad():
            logits = model(ids[:, new], attention_mask=idle[:, new], cache=batch).logits
        for row, right in ((0, alone[1]), (2, alone[2])):
            assert_close(logits[row], right[new])
        done += length
    taken, ids = batch.take(0), torch.stack([random_ids(rest, seed=1), rows[0][3 : 3 + rest], ids[2, rest:]])
    batch.put(1, caches[0])
    batch.clear_rows([0])
    logits, _ = stream(model, ids, calls, batch)
    assert_close(logits[0], stream(model, ids[:1], calls)[0][0])
    assert_close(logits[1], alone[0][:rest])
    assert_close(logits[2], alone[2][rest:])
    assert_close(stream(model, rows[1][None, -rest:], calls, taken)[0][0], alone[1][rest:])
    assert storages_of(batch) == places


def generate_continues_the_stream(animal):
    model, prompt = streaming(animal), random_ids(2, 5)
    model.generation_config.eos_token_id = None
    real = torch.ones_like(prompt)
    generated = model.generate(prompt, attention_mask=real, max_new_tokens=3 * ROOM, do_sample=False, use_cache=True)
    for row in generated:
        assert_tokens_follow(expected(animal, row), row, prompt_length=5)


def bfloat16_runs(animal):
    model = streaming(animal).to(torch.bfloat16)
    logits, _ = stream(model, random_ids(2, LENGTH), cut(LENGTH, [ROOM, 1, 1, 30]))
    assert logits.isfinite().all()


def removing_leaves_no_trace(animal):
    plain, ids = animal.build(), random_ids(1, 3 * ROOM)
    before = [sorted(module.__dict__) for module in plain.modules()]
    with torch.no_grad():
        right = plain(ids).logits
        removed = remove_attention_sinks(inject_attention_sinks(plain, SINKS, WINDOW))
        assert torch.equal(removed(ids).logits, right)
    assert [sorted(module.__dict__) for module in removed.modules()] == before


def one_layer_is_plain_attention_over_what_is_visible(animal):
    """Needs no reference of ours: the keys of a first layer depend on their own token only."""
    if animal.one_layer is ALWAYS_SEVERAL:
        pytest.skip("its attention never stands alone")
    only = replace(animal, config={**animal.config, **animal.one_layer})
    ids, model, plain = random_ids(3 * ROOM), streaming(only), only.build()
    assert len(decoder_layers(plain)) == 1
    logits, _ = stream(model, ids[None], cut(len(ids), [1]))
    for t in range(ROOM, len(ids)):
        visible = torch.cat([ids[:SINKS], ids[t - WINDOW : t + 1]])
        with torch.no_grad():
            assert_close(logits[0, t], plain(visible[None]).logits[0, -1])


def a_rounded_cache_gives_what_single_steps_give(animal):
    """Keys and values of 8 bits: any chunking gives the same, and nearly what a cache gives that rounds nothing.

    In float64, where two ways to compute a number round alike. Some models compute a part in float32 even then.
    Where that makes unrounded logits differ, a number now and then lies on the other side of a halfway point.
    """
    ids, model = random_ids(1, 3 * ROOM), streaming(animal).double()
    model.set_experts_implementation("eager")  # the default does not take float64
    exact, steps = stream(model, ids)[0], cut(3 * ROOM, [1])
    is_wide = largest_difference(stream(model, ids, steps)[0], exact) < 1e-9
    inject_attention_sinks(model, SINKS, WINDOW, attention_sink_cache_dtype="int8")
    logits = stream(model, ids, steps)[0]
    assert 1e-4 < (logits - exact).abs().mean() < 0.2
    for lengths in ([3 * ROOM], [1, ROOM, 1, 9]):
        found, cache = stream(model, ids, cut(3 * ROOM, lengths))
        assert_close(found, logits, TOLERANCE if is_wide else TEETH)
        assert {layer.stored_dtype for layer in cache.layers if isinstance(layer, SinkLayer)} == {torch.uint8}


CHECKS = [
    any_chunking_equals_the_reference,
    every_mistake_shows,
    a_row_gives_what_it_gives_alone,
    short_streams_are_plain_transformers,
    no_cache_gives_the_same_logits,
    the_smallest_sizes_work,
    memory_is_constant,
    caches_do_not_meet,
    saved_and_cropped_streams_go_on,
    rows_come_and_go,
    generate_continues_the_stream,
    bfloat16_runs,
    a_rounded_cache_gives_what_single_steps_give,
    removing_leaves_no_trace,
    one_layer_is_plain_attention_over_what_is_visible,
]
