"""Random settings, streams, cuts and paddings against the naive reference."""

from functools import cache
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.contract import left_padded, stream_rows
from support.helpers import assert_close, random_ids, stream, tiny_llama

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
sinks = st.integers(0, 6)
windows = st.integers(1, 14)


@cache
def plain():
    return tiny_llama(**SMALL)


@cache
def model(prefill="streaming"):
    return inject_attention_sinks(tiny_llama(**SMALL), 4, 12, prefill)


def reference(ids, s, w, **options):
    return naive_logits(plain(), ids, s, w, **options) if len(ids) else torch.zeros(0, 64)


calls = st.lists(st.one_of(st.integers(1, 4), st.integers(1, 60)), min_size=1, max_size=8)


@st.composite
def padded_batches(draw):
    """Patterns of padding of one to five calls; zeros anywhere, more often on the left."""
    rows = draw(st.integers(1, 3))
    patterns = []
    for _ in range(draw(st.integers(1, 5))):
        columns = draw(st.one_of(st.integers(1, 3), st.integers(1, 40)))
        if draw(st.booleans()):
            counts = [draw(st.integers(0, columns)) for _ in range(rows)]
            patterns.append(torch.arange(columns) >= columns - torch.tensor(counts)[:, None])
        else:
            zeros = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
            patterns.append(torch.tensor(zeros).view(rows, columns))
    return patterns


@given(sinks, windows, calls, st.integers(0, 99))
def test_any_stream_in_any_cut(s, w, calls, seed):
    ids = random_ids(sum(calls), seed=seed)
    logits, cache = stream(model(), ids[None], calls, AttentionSinkKVCache(model(), s, w))
    assert_close(logits[0], reference(ids, s, w))
    assert cache.tokens_cached.tolist() == [min(len(ids), s + w)]


@given(sinks, windows, padded_batches(), st.integers(1, 9), st.integers(1, 5))
def test_any_padding_in_calls_cut_into_small_chunks(s, w, patterns, chunk, block):
    """The sizes at which the library cuts a call by itself (a thousand columns, many queries) made small."""
    counts = sum(pattern.sum(dim=1) for pattern in patterns).tolist()
    rows = [random_ids(count, seed=r) for r, count in enumerate(counts)]
    with mock.patch.multiple("attention_sinks.streaming.forward", CHUNK_SIZE=chunk, QUERY_BLOCK={"cpu": block}):
        logits, _ = stream_rows(model(), rows, patterns, AttentionSinkKVCache(model(), s, w))
    for row, row_logits in zip(rows, logits, strict=True):
        assert_close(row_logits, reference(row, s, w))


@given(sinks, windows, calls, st.integers(0, 99))
def test_dense_prefill_in_any_cut(s, w, calls, seed):
    ids = random_ids(sum(calls), seed=seed)
    logits, _ = stream(model("dense"), ids[None], calls, AttentionSinkKVCache(model("dense"), s, w))
    assert_close(logits[0], reference(ids, s, w, dense_calls=calls))


@given(sinks, windows, padded_batches(), st.booleans())
def test_any_padding(s, w, patterns, mask_all_columns):
    counts = sum(pattern.sum(dim=1) for pattern in patterns).tolist()
    rows = [random_ids(count, seed=r) for r, count in enumerate(counts)]
    logits, cache = stream_rows(
        model(), rows, patterns, AttentionSinkKVCache(model(), s, w), mask_all_columns=mask_all_columns
    )
    for row, row_logits in zip(rows, logits, strict=True):
        assert_close(row_logits, reference(row, s, w))
    assert cache.tokens_seen.tolist() == counts
    assert cache.tokens_cached.tolist() == [min(count, s + w) for count in counts]


@given(sinks, windows, padded_batches())
def test_any_padding_with_dense_prefill(s, w, patterns):
    """A row's calls are as long as its own tokens in them."""
    counts = torch.stack([pattern.sum(dim=1) for pattern in patterns], dim=1)
    rows = [random_ids(int(total), seed=r) for r, total in enumerate(counts.sum(dim=1))]
    logits, _ = stream_rows(model("dense"), rows, patterns, AttentionSinkKVCache(model("dense"), s, w))
    for row, row_logits, calls in zip(rows, logits, counts.tolist(), strict=True):
        assert_close(row_logits, reference(row, s, w, dense_calls=[count for count in calls if count]))


@settings(max_examples=settings.default.max_examples // 4)  # long streams
@given(sinks, windows, st.integers(0, 40), st.integers(1, 4), st.integers(0, 99))
def test_rows_that_pause_at_any_step(s, w, prompt, rows, seed):
    """A hundred single-token calls in which every row takes part or not; then everyone reads on."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, prompt + 1, (rows,), generator=generator).tolist()
    patterns = [left_padded(starts, prompt)] if prompt else []
    patterns += [torch.rand(rows, 1, generator=generator) < 0.6 for _ in range(100)]
    patterns += [left_padded([20] * rows)]
    texts = [random_ids(int(sum(pattern[r].sum() for pattern in patterns)), seed=r) for r in range(rows)]
    logits, _ = stream_rows(model(), texts, patterns, AttentionSinkKVCache(model(), s, w))
    for text, row in zip(texts, logits, strict=True):
        assert_close(row, reference(text, s, w))


@given(sinks, windows, padded_batches())
def test_padding_without_a_cache(s, w, patterns):
    """The first call alone, without a cache."""
    pattern = patterns[0]
    streaming = inject_attention_sinks(tiny_llama(**SMALL), s, w)
    ids = random_ids(*pattern.shape)
    with torch.no_grad():
        logits = streaming(ids, attention_mask=pattern.long(), use_cache=False).logits
    for r in range(len(pattern)):
        assert_close(logits[r, pattern[r]], reference(ids[r, pattern[r]], s, w))


@given(sinks, windows, st.lists(st.sampled_from(["reorder", "repeat", "select", "feed"]), max_size=8), st.randoms())
def test_rows_rearranged_in_any_order(s, w, actions, random):
    """The cache is the whole state of its rows, wherever they go; every feed brings another number of tokens each."""
    cache = AttentionSinkKVCache(model(), s, w)
    texts = [random_ids(0), random_ids(0)]
    for number, action in enumerate(["feed", *actions, "feed"]):
        if action == "repeat" and len(texts) > 6:
            continue
        if action == "feed":
            counts = [random.choice([0, 1, 2, 30]) for _ in texts]
            new = [random_ids(count, seed=100 * number + r) for r, count in enumerate(counts)]
            logits, _ = stream_rows(model(), new, [left_padded(counts, max(counts) or 1)], cache)
            for r, row in enumerate(logits):
                start, texts[r] = len(texts[r]), torch.cat([texts[r], new[r]])
                assert_close(row, reference(texts[r], s, w)[start:])
        elif action == "repeat":
            cache.batch_repeat_interleave(2)
            texts = [text for text in texts for _ in range(2)]
        else:
            count = len(texts) if action == "reorder" else random.randint(1, len(texts))
            order = [random.randrange(len(texts)) for _ in range(count)]
            (cache.reorder_cache if action == "reorder" else cache.batch_select_indices)(torch.tensor(order))
            texts = [texts[i] for i in order]
