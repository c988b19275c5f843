"""What a pool knows of its own work: counts, times, and their distributions."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of times, in seconds."""

RECENT = 30.0
"""Tokens per second are those of so many last seconds."""


@dataclass(frozen=True)
class Times:
    """How long something took, each time it was done.

    Attributes
    ----------
    count : int
        How often it was done.
    total : float
        Seconds in all.
    buckets : tuple of int
        How often it took at most as long as each of `BOUNDS` says, and longer than the bound before; the last number is
        for what took longer than all.
    """

    count: int = 0
    total: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)

    @property
    def mean(self) -> float:
        """Seconds on average; 0 when it was never done."""
        return self.total / self.count if self.count else 0.0

    def with_one(self, seconds: float) -> Times:
        """Return the times with one more, which took `seconds`."""
        place = bisect_left(BOUNDS, seconds)
        buckets = tuple(number + (index == place) for index, number in enumerate(self.buckets))
        return Times(self.count + 1, self.total + seconds, buckets)


@dataclass(frozen=True)
class PoolNumbers:
    """What a pool does, and has done since it was made.

    Attributes
    ----------
    rows : int
        How many conversations may be served at once.
    rows_in_use : int
        How many are.
    waiting : int
        Turns that wait for a row.
    turns_finished, turns_stopped, turns_failed, turns_refused : int
        Turns whose answer ended by itself, was stopped, ended with an error, or that found the pool full.
    tokens_read : int
        Tokens of messages that were fed.
    tokens_shared : int
        Tokens of messages that were not fed, because their beginning was copied from another conversation's.
    tokens_written : int
        Tokens of answers.
    tokens_per_second : float
        Tokens of answers in the last 30 seconds, by second.
    time_to_first_token : Times
        Seconds from a message to the first token of its answer.
    time_per_token : Times
        Seconds from each token of an answer to the next one.
    batch_bytes : int
        Bytes of the cache of the running batch.
    sleeping_bytes : int
        Bytes of the conversations in memory between their turns.
    """

    rows: int
    rows_in_use: int = 0
    waiting: int = 0
    turns_finished: int = 0
    turns_stopped: int = 0
    turns_failed: int = 0
    turns_refused: int = 0
    tokens_read: int = 0
    tokens_shared: int = 0
    tokens_written: int = 0
    tokens_per_second: float = 0.0
    time_to_first_token: Times = field(default_factory=Times)
    time_per_token: Times = field(default_factory=Times)
    batch_bytes: int = 0
    sleeping_bytes: int = 0


class Meter:
    """Count what a pool does. Its numbers may be read in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._first, self._between = Times(), Times()
        self._recent: deque[float] = deque()  # when the last tokens were said

    def add(self, name: str, count: int = 1) -> None:
        """Count `count` more of what `PoolNumbers` calls `name`."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + count

    def said(self, since: float, is_first: bool) -> float:
        """Note a token of an answer that was waited for `since` this time; return what time it is."""
        now = time.monotonic()
        with self._lock:
            self._counts["tokens_written"] = self._counts.get("tokens_written", 0) + 1
            if is_first:
                self._first = self._first.with_one(now - since)
            else:
                self._between = self._between.with_one(now - since)
            self._recent.append(now)
            self._forget_old(now)
        return now

    def numbers(self, **now: int) -> PoolNumbers:
        """Return all numbers, with those that are known elsewhere."""
        with self._lock:
            self._forget_old(time.monotonic())
            rate = len(self._recent) / RECENT
            counts: dict[str, Any] = {**now, **self._counts}
            return PoolNumbers(
                **counts, tokens_per_second=rate, time_to_first_token=self._first, time_per_token=self._between
            )

    def _forget_old(self, now: float) -> None:
        while self._recent and self._recent[0] < now - RECENT:
            self._recent.popleft()
