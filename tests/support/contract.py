"""The contract of attention sinks as checks over one Subject: many cuts, paddings and sizes.

A Subject is a way to build a tiny plain model and a reference that says what one stream must give. These checks run
over Llamas of every kind, whose reference (`references.naive`) is fast. What every architecture is put through is in
`support.conformance`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from support.helpers import TEETH, assert_close, cut, largest_difference, random_ids, storages_of, stored_bytes, stream


@dataclass(frozen=True)
class Subject:
    """An architecture under test.

    Attributes
    ----------
    build : () -> PreTrainedModel
        A plain model, in eval mode, with the same random weights at every call.
    reference : (plain model, ids [tokens], sinks, window, **mistake) -> logits [tokens, vocabulary]
        Understands at least the mistake `query_offset`.
    sinks, window : int
        Small, so that a short stream passes the window many times.
    cache_dtype : str, default "auto"
        What the cache rounds to; the reference rounds likewise.
    """

    build: Callable
    reference: Callable
    sinks: int = 4
    window: int = 12
    cache_dtype: str = "auto"

    @property
    def room(self):
        """The longest text for which nothing is evicted."""
        return self.sinks + self.window + 1

    def streaming(self, **settings):
        return inject_attention_sinks(
            self.build(),
            **{
                "attention_sink_size": self.sinks,
                "attention_sink_window_size": self.window,
                "attention_sink_cache_dtype": self.cache_dtype,
                **settings,
            },
        )

    def expected(self, ids, **changes):
        settings = {"sinks": self.sinks, "window": self.window, **changes}
        return self.reference(self.build(), ids, settings.pop("sinks"), settings.pop("window"), **settings)


def stream_rows(model, rows, patterns, cache=None, mask_all_columns=False):
    """Feed a batch of streams with padding anywhere.

    Parameters
    ----------
    rows : list of LongTensor [tokens]
        The real tokens of each row.
    patterns : list of BoolTensor [rows, columns]
        One per call: where real tokens stand. Random ids stand everywhere else.
    mask_all_columns : bool, default False
        Pass the mask of all columns since the cache began instead of that of the new ones.

    Returns
    -------
    logits : list of Tensor [tokens, vocabulary]
    cache : Cache
    """
    fed, logits, masks = [0] * len(rows), [[] for _ in rows], []
    for number, pattern in enumerate(patterns):
        ids = random_ids(*pattern.shape, seed=77 + number)
        for r, row in enumerate(rows):
            count = int(pattern[r].sum())
            ids[r, pattern[r]] = row[fed[r] : fed[r] + count]
            fed[r] += count
        masks.append(pattern.long())
        mask = torch.cat(masks, dim=1) if mask_all_columns else masks[-1]
        with torch.no_grad():
            outputs = model(ids, attention_mask=mask, cache=cache, use_cache=True)
        cache = outputs.cache
        for r in range(len(rows)):
            logits[r].append(outputs.logits[r, pattern[r]])
    assert fed == [len(row) for row in rows], f"the patterns hold {fed} tokens"
    return [torch.cat(parts) for parts in logits], cache


def pattern(*rows):
    """pattern("..xx", "xxxx"): x is a real token, a dot is padding."""
    return torch.tensor([[column == "x" for column in row] for row in rows])


def left_padded(counts, columns=None):
    columns = columns or max(counts)
    return torch.arange(columns) >= columns - torch.tensor(counts)[:, None]


def equals_the_reference_token_by_token(subject):
    """Contract 4, and that a query, a sink or the window off by one would have been seen."""
    ids = random_ids(6 * subject.room)
    logits, _ = stream(subject.streaming(), ids[None], cut(len(ids), [1]))
    assert_close(logits[0], subject.expected(ids))
    mistakes = [{"window": subject.window + 1}, {"query_offset": 1}]
    if subject.sinks:
        mistakes.append({"sinks": subject.sinks - 1})
    for mistake in mistakes:
        late = slice(2 * subject.room, None)
        difference = largest_difference(logits[0, late], subject.expected(ids, **mistake)[late])
        assert difference > TEETH, f"{mistake} changes the logits by {difference:.1e} only"


def chunking_does_not_matter(subject):
    """Contract 1."""
    ids, room = random_ids(6 * subject.room), subject.room
    model, expected = subject.streaming(), subject.expected(ids)
    total = len(ids)
    for lengths in ([total], [room], [room - 1], [room + 1], [7], [2], [total - 1, 1], [1, 3 * room, 2, 5, room]):
        logits, cache = stream(model, ids[None], cut(total, lengths))
        assert_close(logits[0], expected)
        assert cache.get_seq_length() == total and cache.tokens_seen.tolist() == [total]
        assert cache.tokens_cached.tolist() == [room - 1]


def the_batch_does_not_matter(subject):
    """Contract 2: left padding in every call, with either form of the mask; the padding's ids are arbitrary."""
    room = subject.room
    new_tokens = [[room + 5, 3, 1], [2, room - 1, 0], [1, 1, 1], [9, 2 * room, 4], [1, 1, 1], [3, 1, room]]
    rows = [random_ids(sum(counts), seed=r) for r, counts in enumerate(zip(*new_tokens, strict=True))]
    patterns = [left_padded(counts, max(counts) + (i == 0)) for i, counts in enumerate(new_tokens)]
    model, expected = subject.streaming(), [subject.expected(row) for row in rows]
    for mask_all_columns in (False, True):
        logits, cache = stream_rows(model, rows, patterns, mask_all_columns=mask_all_columns)
        for row_logits, row_expected in zip(logits, expected, strict=True):
            assert_close(row_logits, row_expected)
        assert cache.tokens_seen.tolist() == [len(row) for row in rows]
        assert cache.tokens_cached.tolist() == [min(len(row), room - 1) for row in rows]
        assert cache.get_seq_length() == sum(mask.shape[1] for mask in patterns)


def padding_may_stand_anywhere(subject):
    """Contract 2: zeros between, after and instead of a row's tokens, while filling and when full."""
    shapes = [pattern("x.x.xxx", ".......", "xx.....", "...xx.x"), pattern("x", ".", ".", "x")]
    shapes += [pattern("xxxxx..xxxxx.xxx", "..x..x...xxx.x.x", "xxxxxxxxxxxxxxxx", "......x.........")]
    shapes += [pattern("x.", ".x", "..", "xx")] * 3 + [pattern(".", "x", "x", "x")] * 4
    shapes += [pattern("x.x" * room_calls, "xxx" * room_calls, ".x." * room_calls, "..." * room_calls)
               for room_calls in (1, 12)]  # fmt: skip
    counts = sum(shape.sum(dim=1) for shape in shapes).tolist()
    rows = [random_ids(count, seed=r) for r, count in enumerate(counts)]
    logits, cache = stream_rows(subject.streaming(), rows, shapes)
    for row, row_logits in zip(rows, logits, strict=True):
        assert_close(row_logits, subject.expected(row))
    assert cache.tokens_seen.tolist() == counts


def short_streams_are_plain_transformers(subject):
    """Contract 3, with the reason it must be so at the limit and one token beyond."""
    ids, room = random_ids(2, subject.room + 1), subject.room
    with torch.no_grad():
        plain = subject.build()(ids[:, :room]).logits
        longer = subject.build()(ids).logits
    model = subject.streaming()
    for lengths in ([room], [1], [5]):
        logits, _ = stream(model, ids[:, :room], cut(room, lengths))
        assert_close(logits, plain)
    beyond, _ = stream(model, ids)
    assert_close(beyond[:, :room], plain)
    assert largest_difference(beyond[:, room], longer[:, room]) > TEETH


def no_cache_gives_the_same_logits(subject):
    ids = random_ids(2, 5 * subject.room)
    with torch.no_grad():
        outputs = subject.streaming()(ids, use_cache=False)
    assert outputs.cache is None
    for row, logits in zip(ids, outputs.logits, strict=True):
        assert_close(logits, subject.expected(row))


def a_full_cache_never_grows(subject):
    """Contract 5: after the rows are full every tensor of the cache stays where it is."""
    model, ids = subject.streaming(), random_ids(2, 12 * subject.room)
    _, cache = stream(model, ids[:, : 2 * subject.room])
    before = storages_of(cache)
    nbytes = cache.nbytes
    for lengths in ([1], [7], [3 * subject.room], [1, 5]):
        stream(model, ids[:, 2 * subject.room :], cut(10 * subject.room, lengths), cache)
        assert cache.nbytes == nbytes == stored_bytes(cache)
        assert storages_of(cache) == before


def caches_of_one_model_do_not_meet(subject):
    """Contract 7: caches of different lengths and settings, fed alternately."""
    model = subject.streaming()
    settings = [(subject.sinks, subject.window), (subject.sinks, subject.window + 3), (0, 5), (1, 1)]
    ids = [random_ids(5 * subject.room + 3 * i, seed=i) for i in range(len(settings))]
    caches = [AttentionSinkKVCache(model, *setting) for setting in settings]
    parts, fed = [[] for _ in settings], [0] * len(settings)
    for number in range(10**6):
        if all(n == len(i) for n, i in zip(fed, ids, strict=True)):
            break
        for c, cache in enumerate(caches):
            call = ids[c][fed[c] :][: [1, 4, 2, 30][(number + c) % 4]]
            if len(call):
                parts[c].append(stream(model, call[None], cache=cache)[0][0])
                fed[c] += len(call)
    for setting, row, logits in zip(settings, ids, parts, strict=True):
        assert_close(torch.cat(logits), subject.expected(row, sinks=setting[0], window=setting[1]))


CHECKS = [
    equals_the_reference_token_by_token,
    chunking_does_not_matter,
    the_batch_does_not_matter,
    padding_may_stand_anywhere,
    short_streams_are_plain_transformers,
    no_cache_gives_the_same_logits,
    a_full_cache_never_grows,
    caches_of_one_model_do_not_meet,
]
