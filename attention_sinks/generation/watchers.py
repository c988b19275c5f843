"""Watchers learn from the stopping criteria which rows of a run of `generate` have finished."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers import StoppingCriteriaList

from ..cache.cache import AttentionSinkKVCache


class FinishedRows:
    """Remember which rows of one run of `generate` have met a stopping criterion.

    Transformers feeds a finished row until all rows have finished. Those columns are not part of the row's stream.

    Attributes
    ----------
    rows : torch.Tensor or None
        [batch] bool, True for a row that has finished; None before the first step.
    """

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def record(self, done: torch.Tensor) -> None:
        """Note the rows [batch] that are done."""
        self.rows = done.bool() if self.rows is None else self.rows | done.bool()

    def mask(self, columns: int) -> torch.Tensor | None:
        """Return a mask [batch, columns] int64 with zeros in finished rows.

        It is None before the first step, and for a single row that has not finished.
        """
        if self.rows is None or (len(self.rows) == 1 and not bool(self.rows[0])):
            return None
        return (~self.rows).long()[:, None].expand(-1, columns)


class RecordingUntilDone:
    """Stop a cache's recording once all rows are done. Assisted decoding starts the recording and never stops it.

    Some releases of Transformers also apply their criteria to a draft, before they feed it and take a part of it back.
    So a round has ended only if columns have been fed since the criteria were last applied.
    """

    def __init__(self, cache: AttentionSinkKVCache) -> None:
        self._cache, self._columns = weakref.ref(cache), cache.get_seq_length()

    def record(self, done: torch.Tensor) -> None:
        """Stop the recording when the rows [batch] are all `done` and a round has ended."""
        cache = self._cache()
        if cache is None:
            return
        before, self._columns = self._columns, cache.get_seq_length()
        if self._columns != before and bool(done.all()):
            cache.deactivate_past_recording()


class WatchedCriteria(StoppingCriteriaList):
    """Stopping criteria that also report their result to a watcher."""

    def __init__(self, criteria: StoppingCriteriaList, watcher: FinishedRows | RecordingUntilDone) -> None:
        super().__init__(criteria)
        self.watcher = watcher

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        done = super().__call__(input_ids, scores, **kwargs)
        self.watcher.record(done)
        return done
