"""crop(): a stream that has been taken back goes on as if the tokens had never been fed; more is refused."""

import copy
from functools import cache as memo

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.cache.stream_state import COMMITTED_COLUMNS, RECORDED_COLUMNS
from references.naive import naive_logits
from support.contract import left_padded, pattern, stream_rows
from support.helpers import (
    BAD,
    S,
    W,
    assert_close,
    assert_same_state,
    cut,
    interrupted_in,
    random_ids,
    refused,
    state_of,
    stored_bytes,
    stream,
    tiny_llama,
)

ROOM = S + W + 1
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


@memo
def small_model(prefill="streaming"):
    return inject_attention_sinks(tiny_llama(**SMALL), S, W, prefill)


@memo
def plain():
    return tiny_llama()


def recording(model, *sizes):
    cache = AttentionSinkKVCache(model, *sizes)
    cache.activate_past_recording()
    return cache


def returnable(cache):
    """How many columns the cache itself says it can take back, by asking for too many."""
    message = refused(ValueError, lambda: cache.crop(-(10**6)), "crop(-1000000)", "can be taken back")
    return int(message.partition(" of the columns")[0].rpartition(" ")[2])


def assert_continues(model, cache, ids, sizes=(S, W)):
    """The stream behind `cache` is `ids` [tokens]: what follows is what follows them."""
    assert cache.tokens_seen.tolist() == [len(ids)] == [cache.get_seq_length()]
    rest = random_ids(2 * ROOM + 5, seed=9)
    logits, _ = stream(model, rest[None], cut(len(rest), [1, 1, 3]), copy.deepcopy(cache))
    assert_close(logits[0], naive_logits(plain(), torch.cat([ids, rest]), *sizes)[len(ids) :])


@pytest.mark.parametrize("calls", [[1], [5], [200], [16, 1, 1], [3, 40]], ids=str)
@pytest.mark.parametrize("back", [1, 2, 7, W + 1, ROOM, 60])
def test_a_recorded_stream_goes_back_any_way(model, calls, back):
    ids = random_ids(100)
    _, cache = stream(model, ids[None, :30], cache=recording(model))
    stream(model, ids[None, 30:], cut(70, calls), cache)
    cache.crop(-back)
    assert_continues(model, cache, ids[: 100 - back])


@pytest.mark.parametrize("kept", [0, 1, S - 1, S, S + 1, W, S + W, ROOM, ROOM + 1])
def test_back_into_sinks_and_first_window(model, kept):
    """A full row becomes a short one again, its sinks where they first were; even an empty one."""
    ids = random_ids(90)
    _, cache = stream(model, ids[None], [40, 1, 1, 1, 47], recording(model))
    cache.crop(-(90 - kept))
    assert_continues(model, cache, ids[:kept])


@pytest.mark.parametrize("sizes", [(0, 16), (1, 1), (9, 3), (0, 1)], ids=str)
def test_other_sizes_of_sinks_and_window(model, sizes):
    ids = random_ids(80)
    _, cache = stream(model, ids[None], [10, 1, 1, 1, 30, 37], recording(model, *sizes))
    for back in (1, 5, 30):
        cache.crop(-back)
        ids = ids[: len(ids) - back]
        assert_continues(model, cache, ids, sizes)


def test_back_over_several_rebases_and_forth_again(model):
    """Far enough for the origin of the positions to move several times, down and up."""
    ids, cache = random_ids(10), recording(model)
    stream(model, ids[None], cache=cache)
    for seed in range(12):
        new = random_ids(90, seed=seed)
        stream(model, new[None], cut(90, [1, 17]), cache)
        cache.crop(-75)
        ids = torch.cat([ids, new[:15]])
    assert_continues(model, cache, ids)


@pytest.mark.parametrize("length", [1, ROOM - 1, ROOM])
def test_while_a_row_is_not_full_all_of_it_can_be_taken_back(model, length):
    ids = random_ids(length)
    for back in {1, S, W, length}:
        if back > length:
            continue
        _, cache = stream(model, ids[None], cut(length, [5, 1]))
        assert returnable(cache) == length
        cache.crop(-back)
        assert_continues(model, cache, ids[: length - back])


@pytest.mark.parametrize("calls", [[1], [100], [70, 30]], ids=str)
def test_one_token_of_a_full_row_can_always_be_taken_back(model, calls):
    ids = random_ids(100)
    _, cache = stream(model, ids[None], cut(100, calls))
    assert returnable(cache) == 1
    cache.crop(-1)
    assert returnable(cache) == 0
    assert_continues(model, cache, ids[:99])
    stream(model, ids[None, 99:], cache=cache)
    assert returnable(cache) == 1
    cache.crop(-1)
    assert_continues(model, cache, ids[:99])


@pytest.mark.parametrize("extra", [1, 2, 30])
def test_recording_begins_with_what_is_there(model, extra):
    """What has been evicted before recording began is gone; the one free token stays free."""
    ids = random_ids(50 + extra)
    _, cache = stream(model, ids[None, :50])
    cache.activate_past_recording()
    stream(model, ids[None, 50:], cut(extra, [1, 4]), cache)
    assert returnable(cache) == extra + 1
    before = state_of(cache)
    refused(ValueError, lambda: cache.crop(-(extra + 2)), f"crop(-{extra + 2})", extra + 1, "activate_past_recording")
    assert_same_state(cache, before)
    cache.crop(-(extra + 1))
    assert_continues(model, cache, ids[:49])


def test_crop_zero_lets_go_of_most(model):
    """A draft model with another tokenizer reaches a little behind what it has committed; the rest is let go."""
    ids, cache = random_ids(400), recording(model)
    stream(model, ids[None], cut(400, [1, 19]), cache)
    recorded = cache.nbytes
    cache.crop(0)
    assert cache.nbytes < recorded / 3 and cache.get_seq_length() == 400 and cache.is_recording
    assert returnable(cache) == COMMITTED_COLUMNS + 1
    cache.crop(-COMMITTED_COLUMNS - 1)
    assert_continues(model, cache, ids[: 399 - COMMITTED_COLUMNS])


def test_crop_zero_of_a_cache_that_records_nothing(model):
    cache = AttentionSinkKVCache(model)
    cache.crop(0)
    stream(model, random_ids(1, 40), cache=cache)
    before = state_of(cache)
    cache.crop(0)
    assert_same_state(cache, before)


@pytest.mark.parametrize("calls", [[1], [7], [500], [980]], ids=str)
def test_the_log_is_bounded(calls):
    """Nobody switches recording off after assisted decoding: what is kept must not grow with the stream."""
    model, total = small_model(), 3_000
    ids, sizes = random_ids(1, total), []
    _, cache = stream(model, ids[:, :60])
    per_token = cache.nbytes / ROOM
    cache.activate_past_recording()
    for part in ids[:, 60:].split(980, dim=1):
        stream(model, part, cut(part.shape[1], calls), cache)
        sizes.append(cache.nbytes)
        assert cache.nbytes == stored_bytes(cache)
    assert max(sizes[1:]) < (3 * RECORDED_COLUMNS + ROOM) * 1.5 * per_token
    assert sizes[2] <= sizes[1]
    kept = returnable(cache)
    assert kept == RECORDED_COLUMNS + 1
    cache.crop(-kept)
    rest = random_ids(1, 40, seed=3)
    fresh, _ = stream(model, torch.cat([ids[:, : total - kept], rest], dim=1))
    assert_close(stream(model, rest, [1] * 40, cache)[0], fresh[:, -40:])


def test_recording_switched_off_forgets(model):
    ids = random_ids(80)
    _, cache = stream(model, ids[None], [40, 1, 39], recording(model))
    plain = stream(model, ids[None])[1].nbytes
    cache.deactivate_past_recording()
    assert cache.nbytes == plain and returnable(cache) == 1 and not cache.is_recording
    stream(model, ids[None], [1] * 80, cache)
    assert cache.nbytes == plain
    cache.crop(-1)
    assert_continues(model, cache, torch.cat([ids, ids])[:-1])


def test_recording_switched_off_by_transformers(model):
    """After a deferred stop check Transformers sets `record_past` of the layers itself."""
    ids = random_ids(120)
    _, cache = stream(model, ids[None, :80], [40, 1, 39], recording(model))
    for layer in cache.layers:
        layer.record_past = False
    stream(model, ids[None, 80:100], [1] * 20, cache)
    assert returnable(cache) == 1
    cache.activate_past_recording()
    stream(model, ids[None, 100:], [1] * 20, cache)
    assert returnable(cache) == 21
    cache.crop(-21)
    assert_continues(model, cache, ids[:99])


def test_padding_columns_are_taken_back_as_columns(model):
    """Rows lose what they brought in those columns, which for a row may be nothing."""
    shapes = [left_padded([40, 3]), pattern("xxxx..x", "...xx.."), pattern("x", "."), pattern(".", "x")]
    counts = sum(shape.sum(1) for shape in shapes).tolist()
    rows = [random_ids(count, seed=r) for r, count in enumerate(counts)]
    columns = torch.cat(shapes, dim=1)
    for back in (1, 2, 4, 7, 9):
        _, cache = stream_rows(model, rows, shapes, recording(model))
        cache.crop(-back)
        seen = columns[:, :-back].sum(1).tolist()
        assert cache.tokens_seen.tolist() == seen and cache.get_seq_length() == columns.shape[1] - back
        rests = [random_ids(40, seed=20 + r) for r in range(2)]
        logits, _ = stream(model, torch.stack(rests), cut(40, [1, 1, 7]), cache)
        for row, t, rest, row_logits in zip(rows, seen, rests, logits, strict=True):
            assert_close(row_logits, naive_logits(plain(), torch.cat([row[:t], rest]), S, W)[t:])


def test_the_fullest_row_limits_the_batch(model):
    rows = [random_ids(40), random_ids(8, seed=1)]
    _, cache = stream_rows(model, rows, [left_padded([40, 8])])
    assert returnable(cache) == 1
    cache.crop(-1)
    assert cache.tokens_seen.tolist() == [39, 7]


def test_an_idle_row_keeps_its_free_token(model):
    """Columns that hold no token of a row leave its ring alone, in single steps and in blocks."""
    rows = [random_ids(47), random_ids(40, seed=1)]
    shapes = [left_padded([40, 40]), pattern("xxx", "..."), pattern("x", "."), pattern("xxx", "...")]
    _, cache = stream_rows(model, rows, shapes)
    cache.batch_select_indices(torch.tensor([1]))
    assert returnable(cache) == 8
    cache.crop(-8)
    assert cache.tokens_seen.tolist() == [39]
    rest = random_ids(30, seed=2)
    logits, _ = stream(model, rest[None], [1] * 30, cache)
    assert_close(logits[0], naive_logits(plain(), torch.cat([rows[1][:39], rest]), S, W)[39:])


def test_rows_take_their_log_along(model):
    starts = [random_ids(70), random_ids(30, seed=1)]
    shapes = [left_padded([40, 2]), left_padded([25, 25]), *[pattern("x", "x")] * 3, left_padded([2, 0])]
    _, cache = stream_rows(model, starts, shapes, recording(model))
    cache.reorder_cache(torch.tensor([1, 0, 0]))
    assert cache.nbytes == stored_bytes(cache)
    cache.crop(-20)
    for row, (source, t) in enumerate([(1, 12), (0, 50), (0, 50)]):
        single = copy.deepcopy(cache)
        single.batch_select_indices(torch.tensor([row]))
        assert single.tokens_seen.tolist() == [t]
        rest = random_ids(30, seed=2)
        logits, _ = stream(model, rest[None], [1] * 30, single)
        assert_close(logits[0], naive_logits(plain(), torch.cat([starts[source][:t], rest]), S, W)[t:])


def test_a_copy_takes_its_log_along(model):
    ids = random_ids(80)
    _, cache = stream(model, ids[None], [40, 1, 39], recording(model))
    fork = copy.deepcopy(cache)
    cache.crop(-10)
    fork.crop(-20)
    assert_continues(model, cache, ids[:70])
    assert_continues(model, fork, ids[:60])


def test_reset_forgets_the_log(model):
    _, cache = stream(model, random_ids(1, 80), [40, 1, 39], recording(model))
    cache.reset()
    assert cache.nbytes == 0 and returnable(cache) == 0
    stream(model, random_ids(1, 30, seed=1), [1] * 30, cache)
    cache.crop(-10)
    assert_continues(model, cache, random_ids(30, seed=1)[:20])


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_call_that_breaks_off_takes_nothing_from_the_log(model, layer, length, records):
    """What could be taken back before it can be taken back after it; unrecorded, but for the free token of a step."""
    ids = random_ids(90)
    _, cache = stream(model, ids[None], [40, 1, 49], recording(model) if records else None)
    could = returnable(cache)
    with interrupted_in(model, layer):
        stream(model, random_ids(1, length, seed=6), cache=cache)
    assert cache.tokens_seen.tolist() == [90]
    lost = length == 1 and not records
    assert returnable(cache) == could - lost
    back = 0 if lost else 30 if records else 1
    cache.crop(-back)
    assert_continues(model, cache, ids[: 90 - back])


@pytest.mark.parametrize("wrong, words", [(1, ["crop(1)", "crop(-1)"]), (1.5, ["float"]), ("3", ["str"])], ids=str)
def test_what_crop_does_not_take(model, wrong, words):
    _, cache = stream(model, random_ids(1, 40))
    before = state_of(cache)
    with pytest.raises(BAD) as caught:
        cache.crop(wrong)
    assert all(word in str(caught.value) for word in words)
    assert_same_state(cache, before)


def test_crop_of_an_empty_cache(model):
    cache = AttentionSinkKVCache(model)
    refused(ValueError, lambda: cache.crop(-1), "crop(-1)", "0 of")


def test_it_says_that_it_can_be_cropped(model):
    cache = AttentionSinkKVCache(model)
    assert cache.is_croppable and not cache.is_recording
    cache.activate_past_recording()
    assert cache.is_recording


def test_layers_of_another_kind_are_refused(model):
    cache = AttentionSinkKVCache(model)
    cache.layers[1] = DynamicLayer()
    for action in (cache.activate_past_recording, lambda: cache.crop(-1)):
        refused(NotImplementedError, action, "layer 1", "DynamicLayer")


def test_inference_mode_and_plain_calls_share_one_log(model):
    ids = random_ids(90)
    cache = recording(model)
    with torch.inference_mode():
        stream(model, ids[None, :60], [30, 1, 29], cache)
    stream(model, ids[None, 60:], [1, 29], cache)
    cache.crop(-25)
    with torch.inference_mode():
        cache.crop(-25)
    assert_continues(model, cache, ids[:40])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_back_bit_for_bit_where_nothing_is_rotated(dtype):
    model = inject_attention_sinks(tiny_llama().to(dtype), S, W)
    ids = random_ids(1, 64)
    _, cache = stream(model, ids[:, :40], cache=recording(model))
    before = copy.deepcopy(cache)
    stream(model, ids[:, 40:44], [1, 3], cache)
    cache.crop(-4)
    rest = random_ids(1, 30, seed=1)
    assert torch.equal(stream(model, rest, [1] * 30, cache)[0], stream(model, rest, [1] * 30, before)[0])


def test_like_transformers_own_cache_while_nothing_is_evicted(model):
    """The convention of `crop`: columns, negative, of what was fed last."""
    ids, rest = random_ids(2, 15), random_ids(2, 4, seed=1)
    _, own = stream(model, ids)
    _, plain_cache = stream(tiny_llama(), ids, cache=DynamicCache())
    for cache in (own, plain_cache):
        cache.crop(-6)
    assert own.get_seq_length() == plain_cache.get_seq_length() == 9
    assert_close(stream(model, rest, cache=own)[0], stream(tiny_llama(), rest, cache=plain_cache)[0])


# ---- random histories


@st.composite
def histories(draw):
    """Feeds, with padding anywhere, and crops; ("feed", pattern [rows, columns]) or ("crop", share of what is kept)."""
    rows = draw(st.integers(1, 3))
    history = []
    for _ in range(draw(st.integers(2, 8))):
        kind = draw(st.sampled_from(["feed", "feed", "pad", "crop", "crop", "commit", "record", "step"]))
        if kind in ("feed", "step"):
            columns = 1 if kind == "step" else draw(st.one_of(st.integers(1, 4), st.integers(1, 50)))
            for _ in range(draw(st.integers(1, 20)) if kind == "step" else 1):
                history.append(("feed", torch.ones(rows, columns, dtype=torch.bool)))
        elif kind == "pad":
            columns = draw(st.one_of(st.integers(1, 3), st.integers(1, 30)))
            zeros = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
            history.append(("feed", torch.tensor(zeros).view(rows, columns)))
        else:
            history.append((kind, draw(st.floats(0, 1))))
    return rows, history


def assert_history_leaves_no_trace(prefill, s, w, rows, history, start_recording):
    """Run it; then a probe must see what it sees after a fresh cache has been fed the surviving columns."""
    model = small_model(prefill)
    cache = AttentionSinkKVCache(model, s, w)
    if start_recording:
        cache.activate_past_recording()
    pool = [random_ids(3000, seed=r) for r in range(rows)]
    fed, calls = [0] * rows, []  # a call: its pattern and the ids of its columns
    for kind, what in history:
        if kind == "feed":
            ids = torch.stack([pool[r][fed[r] :][: what.shape[1]] for r in range(rows)])
            fed = [count + what.shape[1] for count in fed]
            with torch.no_grad():
                model(ids, attention_mask=what.long(), cache=cache)
            calls.append((what, ids))
        elif kind == "crop":
            back = round(what * cache.streams.returnable)
            cache.crop(-back)
            while back:
                mask, ids = calls.pop()
                keep = max(0, mask.shape[1] - back)
                back -= mask.shape[1] - keep
                if keep:
                    calls.append((mask[:, :keep], ids[:, :keep]))
        elif kind == "commit":
            cache.crop(0)
        else:
            cache.activate_past_recording() if what < 0.7 else cache.deactivate_past_recording()
    fresh = AttentionSinkKVCache(model, s, w)
    for mask, ids in calls:
        with torch.no_grad():
            model(ids, attention_mask=mask.long(), cache=fresh)
    assert cache.get_seq_length() == fresh.get_seq_length()
    assert cache.streams.seen == fresh.streams.seen or not any(fresh.streams.seen)
    probe = torch.stack([pool[r][-40:] for r in range(rows)])
    for length in (1, 9):
        expected, _ = stream(model, probe, cut(40, [length]), copy.deepcopy(fresh))
        assert_close(stream(model, probe, cut(40, [length]), copy.deepcopy(cache))[0], expected)
    assert cache.nbytes == stored_bytes(cache)


@given(st.integers(0, 6), st.integers(1, 14), histories(), st.booleans())
def test_any_history_of_feeding_and_taking_back(s, w, history, start_recording):
    assert_history_leaves_no_trace("streaming", s, w, *history, start_recording)


@settings(max_examples=25)
@given(st.integers(0, 6), st.integers(1, 14), histories(), st.booleans())
def test_any_history_with_dense_prefill(s, w, history, start_recording):
    assert_history_leaves_no_trace("dense", s, w, *history, start_recording)
