"""Where the streams of one cache stand, on the host and on the device."""

from __future__ import annotations

import torch

from ..plan.counters import Counters
from .device_counters import DeviceCounters
from .history import History


class StreamState:
    """The counters and the history of one cache, which its layers share.

    Attributes
    ----------
    room : int
        Tokens that a row may have before any layer loses one.
    device : DeviceCounters or None
        The counters as tensors, for compiled steps. None until the first call fixes the batch size.
    ahead : bool
        Whether compiled steps have moved the tensors on since the host last wrote them.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.device: DeviceCounters | None = None
        self.ahead = False
        self._written: tuple[Counters, History] | None = None  # as the host last knew them

    # ---- where the streams stand; reading changes nothing

    def now(self) -> tuple[Counters, History] | None:
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

    # ---- what moves them

    def stand(self, counters: Counters, history: History, device: torch.device | None = None) -> None:
        """Set the streams to `counters` and `history`; `device` is where compiled steps count."""
        self._written, self.ahead = (counters, history), False
        if self.device is not None and len(self.device.seen) == len(counters):
            self.device.set(counters)
            return
        if device is None:
            assert self.device is not None  # the first call names the device
            device = self.device.seen.device
        self.device = DeviceCounters(counters, self.room, device)

    def advance(
        self, after: Counters, columns: int, real: torch.Tensor | None, recording: bool, device: torch.device
    ) -> None:
        """Move the streams to `after` by a call of `columns` columns, of which `real` are tokens (None: all)."""
        before, history = self.now() or (Counters.empty(len(after)), History.empty(len(after), self.room))
        history = history.advance(before, after, columns, real, recording)
        if real is None and self.device is not None and not self.ahead and after.origin == before.origin:
            self._written = after, history
            self.device.seen.add_(columns)
        else:
            self.stand(after, history, device)

    def step(self, real: torch.Tensor | None, recording: bool, device: torch.device) -> None:
        """Move the streams by one column, a token of the rows where `real` [batch, 1] says so (None: all)."""
        now = self.now()
        assert now is not None  # the first call of a stream is no step
        before, _ = now
        if real is None:
            after = Counters(tuple([t + 1 for t in before.seen]), before.origin)
        else:
            after = before.advance(real[:, 0].tolist())
        self.advance(after, 1, real, recording, device)

    def back(self, counters: Counters, columns: int) -> None:
        """Move the streams back to `counters`, where they stood before their last `columns` columns."""
        now = self.now()
        assert now is not None  # there are columns to take back
        self.stand(counters, now[1].back(counters, columns))

    def forget(self, columns: int) -> None:
        """Keep no more of what was recorded than the last `columns` columns."""
        if (now := self.now()) is not None:
            counters, history = now
            self.stand(counters, history.with_log_of(columns, counters))

    def lose_evicted(self) -> None:
        """Note that a call that broke off has written over the tokens evicted last."""
        if (now := self.now()) is not None:
            counters, history = now
            self.stand(counters, history.without_evicted(counters))

    def select(self, indices: list[int]) -> None:
        """Keep the rows at `indices`, in that order."""
        if (now := self.now()) is not None:
            counters, history = now
            self.stand(counters.select(indices), history.select(indices))

    def clear(self) -> None:
        """Forget all streams; the next call may bring another batch size."""
        self._written = self.device = None
        self.ahead = False
