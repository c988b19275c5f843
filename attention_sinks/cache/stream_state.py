"""Where the streams of one cache stand, on the host and on the device, and how far they can go back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch

from ..plan.counters import Counters
from .device_counters import DeviceCounters

RECORDED_COLUMNS = 1024
"""While a cache records, it can bring back what this many of the last columns pushed out."""

COMMITTED_COLUMNS = 64
"""The same number after `crop(0)`. A draft model with another tokenizer goes back behind what it has committed."""


@dataclass(frozen=True)
class History:
    """The facts that are known of the last columns fed. It is immutable: a call makes the next one.

    Attributes
    ----------
    room : int
        Tokens that a row may have before any layer loses one (the smallest S+W+1).
    columns : int
        Input columns seen since the last reset, padding included.
    length : int
        How many of them are remembered, which is never more than `RECORDED_COLUMNS + room`.
    tokens : tuple of int
        A set of bits for each row. Bit i says whether the i-th newest column was a token of the row.
    floor : tuple of int
        The lowest stream position that each row can return to.
    """

    room: int
    columns: int
    length: int
    tokens: tuple[int, ...]
    floor: tuple[int, ...]

    @classmethod
    def empty(cls, batch_size: int, room: int) -> History:
        """Return the history of streams that have not begun."""
        return cls(room, 0, 0, (0,) * batch_size, (0,) * batch_size)

    @classmethod
    def joined(cls, parts: Sequence[History]) -> History:
        """Return the history of the rows of all `parts`, in their order. Their newest columns become the same columns.

        A row that has had fewer columns than others counts as padded before its own, as in a batch padded on the left.
        """
        room, columns = parts[0].room, max(part.columns for part in parts)
        known = [part.length for part in parts if part.length < part.columns]  # the others are known from the beginning
        length = min(columns, RECORDED_COLUMNS + room, *known)
        tokens = tuple(bits for part in parts for bits in part.tokens)
        return cls(room, columns, length, tokens, tuple(low for part in parts for low in part.floor))

    def advance(
        self, before: Counters, after: Counters, columns: int, real: torch.Tensor | None, recording: bool
    ) -> History:
        """Return the history after `columns` more columns, which lead from `before` to `after`.

        `real` [batch, columns] bool says which are tokens (None: all). It may tell about the newest columns alone; the
        older ones are then forgotten.
        """
        memory = RECORDED_COLUMNS + self.room
        remembered = (1 << memory) - 1
        length = min(self.length + columns, memory)
        if real is None:
            new = (1 << min(columns, memory)) - 1
            tokens = tuple([(old << columns | new) & remembered for old in self.tokens])
        else:
            bits = [_as_bits(row) for row in real[:, -memory:].tolist()]
            tokens = tuple([(old << columns | new) & remembered for old, new in zip(self.tokens, bits, strict=True)])
            length = length if real.shape[1] == columns else real.shape[1]
        floor = self.floor
        if not recording and max(after.seen) > self.room:  # the slot of the token just evicted still holds it
            fed = zip(before.seen, after.seen, floor, strict=True)
            floor = tuple([t - 1 if t > max(self.room, t_before) else low for t_before, t, low in fed])
        history = History(self.room, self.columns + columns, length, tokens, floor)
        return history.with_log_of(RECORDED_COLUMNS, after) if recording else history

    def count(self, columns: int) -> tuple[int, ...]:
        """Return how many tokens each row has among the last `columns` columns."""
        newest = (1 << columns) - 1
        return tuple((bits & newest).bit_count() for bits in self.tokens)

    def available(self, counters: Counters) -> int:
        """Return how many columns can be taken back at most."""
        held = [t - floor for t, floor in zip(counters.seen, self.floor, strict=True)]

        def too_far(columns: int) -> bool:
            return any(count > most for count, most in zip(self.count(columns), held, strict=True))

        return bisect_left(range(self.length + 1), True, key=too_far) - 1

    def back(self, counters: Counters, columns: int) -> History:
        """Return the history without the last `columns` columns, which leaves the streams at `counters`."""
        floor = tuple(0 if t < self.room else low for t, low in zip(counters.seen, self.floor, strict=True))
        tokens = tuple(bits >> columns for bits in self.tokens)
        return History(self.room, self.columns - columns, self.length - columns, tokens, floor)

    def without_evicted(self, counters: Counters) -> History:
        """Return the history when a call that broke off has written over the slots of the tokens evicted last."""
        floor = tuple(max(low, t) if t >= self.room else low for t, low in zip(counters.seen, self.floor, strict=True))
        return replace(self, floor=floor)

    def with_log_of(self, columns: int, counters: Counters) -> History:
        """Return the history when only what the last `columns` columns pushed out is kept.

        A full row can go back by one token even without that.
        """
        floor = tuple(
            max(low, t - 1 - count) if t > self.room else low
            for t, low, count in zip(counters.seen, self.floor, self.count(columns), strict=True)
        )
        return replace(self, floor=floor)

    def select(self, indices: list[int]) -> History:
        """Return the history of the rows at `indices`, in that order."""
        return replace(self, tokens=tuple(self.tokens[i] for i in indices), floor=tuple(self.floor[i] for i in indices))


Standing = tuple[Counters, History]
"""Where streams stand."""


def joined(parts: Sequence[Standing]) -> Standing:
    """Return where the rows of all `parts` stand, in their order."""
    return Counters.joined([part[0] for part in parts]), History.joined([part[1] for part in parts])


def selected(standing: Standing, indices: list[int]) -> Standing:
    """Return where the rows at `indices` stand, in that order."""
    return standing[0].select(indices), standing[1].select(indices)


class StreamState:
    """The counters and the history of one cache, which its layers share.

    A change is one act. The streams move in one line, and the same line says what has to follow in the layers and on
    the device. An exception before that line has changed nothing; an exception after it leaves something `unfinished`,
    which is done before anything else is done with the cache. Whatever is unfinished may be done twice.

    Attributes
    ----------
    room : int
        Tokens that a row may have before any layer loses one.
    device : DeviceCounters or None
        The counters as tensors, for compiled steps. None until the first call fixes the batch size.
    ahead : bool
        Whether compiled steps have moved the tensors on since the host last wrote them.
    unfinished : callable or None
        What an exception has left to do.
    in_use : dict
        The call that is under way, which nobody may disturb, under the name "call"; empty between calls.
    lost : object
        The call that was under way when the streams were forgotten.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.device: DeviceCounters | None = None
        self.ahead = False
        self.unfinished: Callable[[], None] | None = None
        self.in_use: dict[str, object] = {}
        self.lost: object = None
        self._written: Standing | None = None  # as the host last knew them

    # ---- one act

    def settle(self) -> None:
        """Finish what an exception has left to do.

        Raises
        ------
        RuntimeError
            When a call is under way.
        """
        if self.in_use:
            _refuse_a_second_call()
        self._finish()

    def _finish(self) -> None:
        unfinished = self.unfinished
        if unfinished is not None:
            unfinished()
            self.unfinished = None

    def begin(self, call: object, undo: Callable[[], None]) -> None:
        """Note that `call` is under way, and what undoes it when it breaks off. Of two threads, one is refused."""
        if self.in_use.setdefault("call", call) is not call:
            _refuse_a_second_call()
        self.unfinished = undo

    def end(self, call: object) -> None:
        """Note that `call` is over. When it has broken off, it is undone; when it was done, nothing of it is left."""
        if self.in_use.get("call") is call:
            self.in_use = {}
            self._finish()

    def change(
        self, standing: Standing | None, layers: Callable[[], None] | None, device: torch.device | None = None
    ) -> None:
        """Move the streams to `standing`, None for none.

        `layers` does what has to follow in the layers and may be called twice. `device` is where compiled steps count.
        """
        before = None if self.ahead else self._written
        quick = before is not None and standing is not None and _differ_in_one_number(before[0], standing[0])
        follow = partial(self._follow, layers, quick, device)
        self._written, self.ahead, self.unfinished = standing, False, follow
        self._finish()

    def _follow(self, layers: Callable[[], None] | None, quick: bool, device: torch.device | None) -> None:
        """Let the layers and the counters on the device follow; `quick` says that these differ in one number alone."""
        if layers is not None:
            layers()
        if self._written is None:
            return
        counters, _ = self._written
        if self.device is None or self.device.seen.shape[0] != len(counters.seen):
            device = self.device.seen.device if device is None and self.device is not None else device
            assert device is not None  # the first call names the device
            self.device = DeviceCounters(counters, self.room, device)
        elif quick:
            self.device.seen.fill_(counters.seen[0])
        else:
            self.device.set(counters)

    # ---- where the streams stand; reading changes nothing

    def now(self) -> Standing | None:
        """Return the counters and the history, or None until the first call fixes the batch size."""
        if not self.ahead:
            return self._written
        assert self._written is not None and self.device is not None  # compiled steps come after a first call
        before, history = self._written
        counters, columns, real = self.device.read()
        return counters, history.advance(before, counters, columns, real, recording=False)

    @property
    def counters(self) -> Counters | None:
        now = self.now()
        return None if now is None else now[0]

    @property
    def columns(self) -> int:
        """Input columns seen since the last reset, padding included."""
        columns = 0 if self._written is None else self._written[1].columns
        return columns + int(self.device.steps) if self.ahead and self.device is not None else columns

    @property
    def seen(self) -> tuple[int, ...]:
        """Real tokens that each row has fed. Before the first call there are no rows."""
        counters = self.counters
        return () if counters is None else counters.seen

    @property
    def returnable(self) -> int:
        """How many of the last columns can be taken back."""
        now = self.now()
        return 0 if now is None else now[1].available(now[0])

    # ---- where they will stand

    def after(self, counters: Counters, columns: int, real: torch.Tensor | None, recording: bool) -> Standing:
        """Return where the streams stand after a call of `columns` columns, `real` of them tokens (None: all)."""
        before, history = self.now() or (Counters.empty(len(counters)), History.empty(len(counters), self.room))
        return counters, history.advance(before, counters, columns, real, recording)

    def after_step(self, real: torch.Tensor | None, recording: bool) -> Standing:
        """Return where they stand after one column, a token of the rows where `real` [batch, 1] says so (None: all)."""
        now = self.now()
        assert now is not None  # the first call of a stream is no step
        before, history = now
        if real is None:
            after = Counters(tuple([t + 1 for t in before.seen]), before.origin)
        else:
            after = before.advance(real[:, 0].tolist())
        return after, history.advance(before, after, 1, real, recording)

    def recorded(self, columns: int) -> Standing | None:
        """Return where they stand when no more of what was recorded is kept than the last `columns` columns."""
        now = self.now()
        return None if now is None else (now[0], now[1].with_log_of(columns, now[0]))

    def lose_evicted(self) -> None:
        """Note that a call that broke off has written over the tokens evicted last. It may be noted twice."""
        if (now := self.now()) is not None:
            counters, history = now
            self._written, self.ahead = (counters, history.without_evicted(counters)), False
            assert self.device is not None  # it was made by the first call
            self.device.set(counters)

    def clear(self, layers: Callable[[], None]) -> None:
        """Forget all streams, then do `layers`; the next call may bring another batch size."""
        self.lost = self.in_use.get("call")
        self._written, self.device, self.ahead, self.in_use, self.unfinished = None, None, False, {}, layers
        self._finish()


def _refuse_a_second_call() -> NoReturn:
    raise RuntimeError(
        "cache is in use: a call that streams through it has not ended, in another thread or around this one. Wait for "
        "it, or give every thread a cache of its own. If there is none, because an exception has struck while a call "
        "was ended, reset() the cache or load a saved one."
    )


def _differ_in_one_number(before: Counters, after: Counters) -> bool:
    return before.origin == after.origin and min(after.seen) == max(after.seen)


def _as_bits(tokens: list[bool]) -> int:
    """Return the columns of a row as bits, of which the lowest is the newest column."""
    bits = 0
    for token in tokens:
        bits = bits << 1 | token
    return bits
