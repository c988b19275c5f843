"""Any history of a cache, with exceptions in it: its rows are always the streams of tokens that somebody can name.

A state machine does to a cache what users do, and notes which tokens each row has. Now and then an exception strikes at
some line. What the rows give next is compared with rows that were fed alone, from the beginning.
"""

import copy
from dataclasses import dataclass, replace
from functools import cache as remembered
from functools import partial

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.versions import CACHE
from support.faults import interrupted
from support.helpers import TOLERANCE, largest_difference, random_ids, tiny_llama

PROBE = random_ids(1, 2, seed=9)


@remembered
def streaming_model():
    return inject_attention_sinks(tiny_llama(), 1, 4)


def feed(cache, ids, mask=None):
    with torch.no_grad():
        return streaming_model()(input_ids=ids, attention_mask=mask, use_cache=True, **{CACHE: cache}).logits


@remembered
def logits_after(row):
    """What a row with these tokens gives for the probe."""
    cache = AttentionSinkKVCache(streaming_model())
    if row:
        feed(cache, torch.tensor([row]))
    return feed(cache, PROBE)[0]


@dataclass(frozen=True)
class Rows:
    """Input columns, from old to new: the token of each row, None for padding."""

    count: int
    columns: tuple[tuple[int | None, ...], ...] = ()

    def tokens(self, row):
        return tuple(column[row] for column in self.columns if column[row] is not None)

    def feed(self, columns):
        return replace(self, columns=self.columns + columns)

    def crop(self, columns):
        return replace(self, columns=self.columns[: len(self.columns) - columns])

    def select(self, indices):
        return Rows(len(indices), tuple(tuple(column[i] for i in indices) for column in self.columns))


def are_streams_of(cache, rows):
    if cache.get_seq_length() != len(rows.columns):
        return False
    if rows.columns and cache.tokens_seen.tolist() != [len(rows.tokens(row)) for row in range(rows.count)]:
        return False
    found = feed(copy.deepcopy(cache), PROBE.expand(rows.count, -1))
    return all(
        largest_difference(logits, logits_after(rows.tokens(row))) < TOLERANCE for row, logits in enumerate(found)
    )


class AnyHistory(RuleBasedStateMachine):
    @initialize(rows=st.integers(1, 3))
    def begin(self, rows):
        self.cache, self.rows = AttentionSinkKVCache(streaming_model()), Rows(rows)

    def act(self, action, after, line):
        """Do something that leads to the rows `after`, with an exception at `line` if it is not 0."""
        if not line:
            action(self.cache)
            self.rows = after
        elif not interrupted(partial(action, self.cache), line):
            self.rows = after
        else:
            self.find_out(after)

    def find_out(self, after):
        """The rows are as before or as after; when nothing can be said, the cache refuses."""
        try:
            copy.deepcopy(self.cache)
        except RuntimeError as error:
            assert "reset()" in str(error)
            self.cache.reset()
            self.rows = Rows(self.rows.count)
            return
        if not are_streams_of(self.cache, self.rows):
            self.rows = after

    LINES = st.one_of(st.just(0), st.integers(1, 700))

    @rule(data=st.data(), columns=st.integers(1, 9), seed=st.integers(0, 99), line=LINES)
    def feeds(self, data, columns, seed, line):
        ids = random_ids(self.rows.count, columns, seed=seed)
        padding = data.draw(st.lists(st.integers(0, columns), min_size=self.rows.count, max_size=self.rows.count))
        mask = torch.arange(columns)[None] >= torch.tensor(padding)[:, None]
        new = tuple(
            tuple(int(ids[row, i]) if mask[row, i] else None for row in range(self.rows.count)) for i in range(columns)
        )
        self.act(lambda cache: feed(cache, ids, mask.long()), self.rows.feed(new), line)

    @precondition(lambda self: self.rows.columns and self.cache.streams.returnable)
    @rule(data=st.data(), line=LINES)
    def takes_back(self, data, line):
        columns = data.draw(st.integers(1, self.cache.streams.returnable))
        self.act(lambda cache: cache.crop(-columns), self.rows.crop(columns), line)

    @rule(recording=st.booleans(), line=LINES)
    def records(self, recording, line):
        name = "activate_past_recording" if recording else "deactivate_past_recording"
        self.act(lambda cache: getattr(cache, name)(), self.rows, line)

    @precondition(lambda self: self.rows.columns)
    @rule(data=st.data(), line=LINES)
    def rearranges(self, data, line):
        indices = data.draw(st.lists(st.integers(0, self.rows.count - 1), min_size=1, max_size=4))
        self.act(lambda cache: cache.batch_select_indices(torch.tensor(indices)), self.rows.select(indices), line)

    @rule(line=LINES)
    def forgets(self, line):
        self.act(lambda cache: cache.reset(), Rows(self.rows.count), line)

    @rule()
    def goes_on_as_a_copy(self):
        self.cache = copy.deepcopy(self.cache)

    @rule()
    def goes_on_as_saved(self):
        self.cache = AttentionSinkKVCache.from_snapshot(streaming_model(), *self.cache.snapshot())

    @invariant()
    def the_rows_are_the_streams(self):
        assert are_streams_of(self.cache, self.rows)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = hypothesis.settings(max_examples=80, stateful_step_count=15)
