"""Where the streams of one cache stand, on the host and on the device."""

from __future__ import annotations

import torch

from ..plan.counters import Counters
from .device_counters import DeviceCounters
from .history import History


class StreamState:
    """The counters and the history of one cache, shared by its layers.

    Attributes
    ----------
    room : int
        Tokens a row may have before any layer loses one.
    device : DeviceCounters or None
        The counters as tensors, for compiled steps; None until the first call fixes the batch size.
    ahead : bool
        Whether compiled steps have moved the tensors on since the host last wrote them.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.device: DeviceCounters | None = None
        self.ahead = False
        self._counters: Counters | None = None
        self._history: History | None = None

    # ---- where they stand; reading changes nothing

    def now(self) -> tuple[Counters, History] | tuple[None, None]:
        """Counters and history; None and None until the first call fixes the batch size."""
        if not self.ahead:
            return self._counters, self._history
        counters, columns, real = self.device.read()
        return counters, self._history.advance(self._counters, counters, columns, real, recording=False)

    @property
    def counters(self) -> Counters | None:
        return self.now()[0]

    @property
    def history(self) -> History | None:
        return self.now()[1]

    @property
    def columns(self) -> int:
        """Input columns seen since the last reset, padding included."""
        if self._history is None:
            return 0
        return self._history.columns + (int(self.device.steps) if self.ahead else 0)

    @property
    def seen(self) -> tuple[int, ...]:
        counters = self.counters
        return () if counters is None else counters.seen

    @property
    def returnable(self) -> int:
        """How many of the last columns can be taken back."""
        counters, history = self.now()
        return 0 if counters is None else history.available(counters)

    # ---- what moves them

    def stand(self, counters: Counters, history: History, device: torch.device | None = None) -> None:
        """The streams stand at `counters` from now on; `device` is where compiled steps count."""
        self._counters, self._history, self.ahead = counters, history, False
        if self.device is None or len(self.device.seen) != len(counters):
            device = self.device.seen.device if device is None else device
            self.device = DeviceCounters(counters, self.room, device)
        else:
            self.device.set(counters)

    def advance(
        self, after: Counters, columns: int, real: torch.Tensor | None, recording: bool, device: torch.device
    ) -> None:
        """A call of `columns` columns, of which `real` are tokens (None: all), leaves the streams at `after`."""
        before, history = self.now()
        if before is None:
            before, history = Counters.empty(len(after)), History.empty(len(after), self.room)
        history = history.advance(before, after, columns, real, recording)
        if real is None and self.device is not None and not self.ahead and after.origin == before.origin:
            self._counters, self._history = after, history
            self.device.seen.add_(columns)
        else:
            self.stand(after, history, device)

    def step(self, real: torch.Tensor | None, recording: bool, device: torch.device) -> None:
        """A call of one column, a token of the rows where `real` [batch, 1] says so (None: all), has been fed."""
        before, _ = self.now()
        if real is None:
            after = Counters(tuple([t + 1 for t in before.seen]), before.origin)
        else:
            after = before.advance(real[:, 0].tolist())
        self.advance(after, 1, real, recording, device)

    def back(self, counters: Counters, columns: int) -> None:
        """The last `columns` columns have been taken back, which leaves the streams at `counters`."""
        self.stand(counters, self.history.back(counters, columns))

    def forget(self, columns: int) -> None:
        """Keep of what was recorded no more than the last `columns` columns."""
        counters, history = self.now()
        if counters is not None:
            self.stand(counters, history.with_log_of(columns, counters))

    def lose_evicted(self) -> None:
        """A call that broke off has written over the tokens evicted last."""
        counters, history = self.now()
        if counters is not None:
            self.stand(counters, history.without_evicted(counters))

    def select(self, indices: list[int]) -> None:
        """Keep the rows at `indices`, in that order."""
        counters, history = self.now()
        if counters is not None:
            self.stand(counters.select(indices), history.select(indices))

    def clear(self) -> None:
        """Forget all streams; the next call may bring another batch size."""
        self._counters = self._history = self.device = None
        self.ahead = False
