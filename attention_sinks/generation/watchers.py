"""Noticing when the rows of a `generate` call are done: what a stopping criterion says, passed on to who must know."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers import StoppingCriteriaList

from ..cache.cache import AttentionSinkKVCache


class FinishedRows:
    """Which rows of one `generate` call have met a stopping criterion.

    Transformers goes on feeding a finished row until all rows are done; those columns are not part of its stream.
    """

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def record(self, done: torch.Tensor) -> None:
        self.rows = done.bool() if self.rows is None else self.rows | done.bool()

    def mask(self, columns: int) -> torch.Tensor | None:
        """[batch, columns] int64, zeros in the rows that have finished; None before the first step, and for one row."""
        if self.rows is None or (len(self.rows) == 1 and not bool(self.rows[0])):
            return None
        return (~self.rows).long()[:, None].expand(-1, columns)


class RecordingUntilDone:
    """Assisted decoding makes a cache record and never stops it: this does, once all rows are done.

    Some versions of Transformers ask their criteria about a draft, too, before they feed it and take a part of it back;
    a round has ended when columns have been fed since the criteria were last asked.
    """

    def __init__(self, cache: AttentionSinkKVCache) -> None:
        self._cache, self._columns = weakref.ref(cache), cache.get_seq_length()

    def record(self, done: torch.Tensor) -> None:
        cache = self._cache()
        if cache is None:
            return
        before, self._columns = self._columns, cache.get_seq_length()
        if self._columns != before and bool(done.all()):
            cache.deactivate_past_recording()


class WatchedCriteria(StoppingCriteriaList):
    """Stopping criteria that also tell a watcher."""

    def __init__(self, criteria: StoppingCriteriaList, watcher: FinishedRows | RecordingUntilDone) -> None:
        super().__init__(criteria)
        self.watcher = watcher

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = super().__call__(input_ids, scores, **kwargs)
        self.watcher.record(done)
        return done
