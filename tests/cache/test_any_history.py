"""Any history of a cache, with exceptions in it: its rows are always the streams of tokens that somebody can name.

A state machine does to a cache what users do, and notes which tokens each row has. Rows are set aside in caches of
their own, are fed there, and come back into any row. Now and then an exception strikes at some line. What the rows give
next is compared with rows that were fed alone, from the beginning.
"""

import copy
from functools import partial

import hypothesis
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attention_sinks import AttentionSinkKVCache
from support.faults import interrupted
from support.helpers import random_ids, refused
from support.rows import Rows, are_streams_of, feed, streaming_model


class AnyHistory(RuleBasedStateMachine):
    @initialize(data=st.data(), rows=st.integers(1, 3), recording=st.booleans())
    def begin(self, data, rows, recording):
        self.cache, self.rows = AttentionSinkKVCache(streaming_model()), Rows(rows)
        self.aside = []  # caches of one row, each with what it is
        if columns := data.draw(st.integers(0, 20)):
            self.feeds(data, columns, seed=0, whole_mask=False, line=0)
        if recording:
            self.records(recording, line=0)

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

    @rule(data=st.data(), columns=st.integers(1, 9), seed=st.integers(0, 99), whole_mask=st.booleans(), line=LINES)
    def feeds(self, data, columns, seed, whole_mask, line):
        ids = random_ids(self.rows.count, columns, seed=seed)
        padding = data.draw(st.lists(st.integers(0, columns), min_size=self.rows.count, max_size=self.rows.count))
        mask = torch.arange(columns)[None] >= torch.tensor(padding)[:, None]
        new = tuple(
            tuple(int(ids[row, i]) if mask[row, i] else None for row in range(self.rows.count)) for i in range(columns)
        )
        mask = torch.cat([self.rows.mask, mask.long()], dim=1) if whole_mask else mask.long()
        self.act(lambda cache: feed(cache, ids, mask), self.rows.feed(new), line)

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

    @precondition(lambda self: self.rows.columns and len(self.aside) < 2)
    @rule(data=st.data(), line=LINES)
    def sets_aside(self, data, line):
        row, taken = data.draw(st.integers(0, self.rows.count - 1)), []
        self.act(lambda cache: taken.append(cache.take(row)), self.rows, line)
        self.aside += [(cache, self.rows.take(row)) for cache in taken]

    @precondition(lambda self: self.aside)
    @rule(columns=st.integers(1, 9), seed=st.integers(0, 99))
    def feeds_what_is_aside(self, columns, seed):
        cache, rows = self.aside.pop(0)
        ids = random_ids(1, columns, seed=seed)
        feed(cache, ids)
        self.aside.append((cache, rows.feed(tuple((int(token),) for token in ids[0]))))

    @precondition(lambda self: self.rows.columns and self.aside)
    @rule(data=st.data(), keeps=st.booleans(), line=LINES)
    def puts_back(self, data, keeps, line):
        row, (other, rows) = data.draw(st.integers(0, self.rows.count - 1)), self.aside[0]
        if rows.tokens(0) and other.is_recording != self.cache.is_recording:
            refused(ValueError, lambda: self.cache.put(row, other), "records")
            return
        self.act(lambda cache: cache.put(row, other), self.rows.put(row, rows), line)
        self.aside = self.aside if keeps else self.aside[1:]

    @precondition(lambda self: self.rows.columns and self.aside and self.rows.count + len(self.aside) < 6)
    @rule(first=st.booleans(), line=LINES)
    def stacks(self, first, line):
        caches, rows = zip(*self.aside, strict=True)
        caches = [*caches, self.cache] if first else [self.cache, *caches]
        rows = [*rows, self.rows] if first else [self.rows, *rows]
        if len({cache.is_recording for cache in caches if any(cache.streams.seen)}) > 1:
            refused(ValueError, lambda: AttentionSinkKVCache.stack(caches), "records")
            return
        made = []
        self.act(lambda _: made.append(AttentionSinkKVCache.stack(caches)), self.rows, line)
        if made:
            self.cache, self.rows = made[0], Rows.stack(rows)

    @precondition(lambda self: self.rows.columns)
    @rule(data=st.data(), line=LINES)
    def clears(self, data, line):
        rows = data.draw(st.lists(st.integers(0, self.rows.count - 1), max_size=2))
        self.act(lambda cache: cache.clear_rows(rows), self.rows.clear(rows), line)

    @precondition(lambda self: self.rows.columns)
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
        for cache, rows in [(self.cache, self.rows), *self.aside]:
            assert are_streams_of(cache, rows)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = hypothesis.settings(max_examples=100, stateful_step_count=20)
