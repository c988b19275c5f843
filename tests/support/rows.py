"""Which tokens each row of a cache has, in plain tuples, and whether a cache holds just these streams."""

import copy
from dataclasses import dataclass, replace
from functools import cache as remembered

import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.versions import CACHE
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

    def take(self, row):
        return self.select([row]) if self.tokens(row) else Rows(1)

    def clear(self, rows):
        kept = tuple(tuple(None if r in rows else column[r] for r in range(self.count)) for column in self.columns)
        return Rows(self.count, kept)

    def put(self, row, other):
        if not other.tokens(0):
            return self.clear([row])
        return Rows.stack([self, other]).select([self.count if r == row else r for r in range(self.count)])

    @staticmethod
    def stack(parts):
        """Their newest columns are side by side; who had fewer is padded on the left."""
        longest = max(len(part.columns) for part in parts)
        wide = [((None,) * part.count,) * (longest - len(part.columns)) + part.columns for part in parts]
        columns = tuple(sum(column, ()) for column in zip(*wide, strict=True))
        return Rows(sum(part.count for part in parts), columns)

    @property
    def mask(self):
        """[rows, columns], 1 for a token."""
        return torch.tensor(
            [[column[row] is not None for column in self.columns] for row in range(self.count)], dtype=torch.long
        )


def are_streams_of(cache, rows):
    if cache.get_seq_length() != len(rows.columns):
        return False
    if rows.columns and cache.tokens_seen.tolist() != [len(rows.tokens(row)) for row in range(rows.count)]:
        return False
    found = feed(copy.deepcopy(cache), PROBE.expand(rows.count, -1))
    return all(
        largest_difference(logits, logits_after(rows.tokens(row))) < TOLERANCE for row, logits in enumerate(found)
    )
