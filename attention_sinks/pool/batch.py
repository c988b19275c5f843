"""The running batch: one cache, of which every conversation that answers has a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..cache.cache import AttentionSinkKVCache
from ..chat.decoding import device_of
from ..versions import CACHE

PATIENCE = 32
"""After so many steps with at least half of its rows idle, the batch becomes smaller."""


class Seat:
    """The place of a conversation in the batch.

    Attributes
    ----------
    row : int
        Which row of the cache it is. It changes when the batch becomes smaller.
    """

    def __init__(self, row: int) -> None:
        self.row = row


class Batch:
    """A cache whose rows come and go while the model steps all of them at once.

    An idle row costs as much as another, so the batch has as many rows as are needed, rounded up to a power of two. A
    compiled batch always has all its rows, because one graph serves one number of rows.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A model with attention sinks injected.
    most : int
        How many rows there may be.
    compiles : bool
        Whether steps run in a graph of `torch.compile`.

    Attributes
    ----------
    cache : AttentionSinkKVCache or None
        The rows; None while there are none.
    seats : list of Seat
        Who has a row.
    """

    def __init__(self, model: Any, most: int, compiles: bool = False) -> None:
        self.model, self.most = model, most
        self.cache: AttentionSinkKVCache | None = None
        self.seats: list[Seat] = []
        self._is_compiled = compiles
        self._run: Any = torch.compile(model.forward, fullgraph=True, dynamic=False) if compiles else model
        self._idle_steps = 0

    @property
    def rows(self) -> int:
        """How many rows the cache has."""
        return 0 if self.cache is None else max(self.cache.batch_size, 0)

    def join(self, cache: AttentionSinkKVCache) -> Seat:
        """Give the only row of `cache`, which has read something, a row of the batch. Do not use `cache` any more.

        Raises
        ------
        RuntimeError
            When all rows are taken.
        """
        if len(self.seats) == self.most:
            raise RuntimeError(f"all {self.most} rows of the batch are taken; wait until one leaves.")
        if self.cache is None:
            self._resize(cache, [0] * (self.most if self._is_compiled else 1))
            seat = Seat(0)
        else:
            if len(self.seats) == self.rows:
                size = min(2 * self.rows, self.most)
                self._resize(self.cache, [row % self.rows for row in range(size)])
            seat = Seat(min(set(range(self.rows)) - {seat.row for seat in self.seats}))
            self.cache.put(seat.row, cache)
        self.seats.append(seat)
        return seat

    def leave(self, seat: Seat) -> AttentionSinkKVCache:
        """Return a cache of one row, that of `seat`, which is free again."""
        assert self.cache is not None  # it has this row
        self.seats.remove(seat)
        cache = self.cache if self.rows == 1 and not self._is_compiled else self.cache.take(seat.row)
        if not self.seats and not self._is_compiled:
            self.cache = None
        return cache

    @torch.no_grad()
    def step(self, tokens: Mapping[Seat, int], arguments: Mapping[str, Any]) -> dict[Seat, torch.Tensor]:
        """Feed each seat its token and return its logits [1, 1, words]. Every seat has a token.

        When the call breaks off, every row is as it was before.
        """
        self._shrink()
        assert self.cache is not None and tokens.keys() == set(self.seats)
        device = device_of(self.model)
        ids, active = [0] * self.rows, [0] * self.rows
        for seat, token in tokens.items():
            ids[seat.row], active[seat.row] = token, 1
        outputs = self._run(
            input_ids=torch.tensor(ids, dtype=torch.long, device=device)[:, None],
            attention_mask=self._mask(active, device),
            use_cache=True,
            **{CACHE: self.cache},
            **arguments,
        )
        return {seat: outputs.logits[seat.row : seat.row + 1] for seat in tokens}

    def _mask(self, active: list[int], device: Any) -> torch.Tensor | None:
        """Return the mask [rows, 1] that leaves idle rows alone; None where all rows are fed.

        States take no padding after the first call, so idle rows of a model with states are fed some token. They hold
        nothing of value, and a conversation that takes one overwrites all of it. A compiled step always has a mask,
        because it would be another graph without one.
        """
        assert self.cache is not None
        if self.cache.layer_stack.keeps_states or (all(active) and not self._is_compiled):
            return None
        return torch.tensor(active, dtype=torch.long, device=device)[:, None]

    def _shrink(self) -> None:
        """Let the batch become smaller when at least half of its rows have been idle for a while."""
        is_roomy = 2 * len(self.seats) <= self.rows and not self._is_compiled
        self._idle_steps = self._idle_steps + 1 if is_roomy else 0
        if self._idle_steps < PATIENCE:
            return
        assert self.cache is not None
        size = 1
        while size < len(self.seats):
            size *= 2
        rows = [seat.row for seat in self.seats]
        self._resize(self.cache, [rows[row % len(rows)] for row in range(size)])
        for row, seat in enumerate(self.seats):
            seat.row = row
        self._idle_steps = 0

    def _resize(self, cache: AttentionSinkKVCache, rows: list[int]) -> None:
        """Let the batch go on in `cache` with copies of its `rows`."""
        if rows != list(range(cache.batch_size)):
            cache.batch_select_indices(torch.tensor(rows, dtype=torch.long, device="cpu"))
        self.cache = cache
