"""Where the streams of a batch stand, as tensors that a compiled step moves on in place."""

from __future__ import annotations

import torch

from ..plan.counters import Counters


class DeviceCounters:
    """`Rows` for steps inside one graph, where a Python number would be a constant.

    The tensors are written in place and never replaced; what they say of the steps taken since `set` is read when
    the host next asks.

    Attributes
    ----------
    seen, base : torch.Tensor
        [batch] int64, as in `Rows`.
    steps : torch.Tensor
        [1] int64, columns fed since the last `set`.
    real : torch.Tensor
        [batch, memory] bool, a ring: which of the last columns were tokens of each row.
    """

    def __init__(self, rows: Counters, memory: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.seen, self.base = torch.tensor([rows.seen, rows.base], device=device).unbind()
            self.steps = torch.zeros(1, dtype=torch.long, device=device)
            self.real = torch.zeros(len(rows), memory, dtype=torch.bool, device=device)
        if device.type == "cuda":  # a CUDA graph would copy what it does not know to stay where it is
            for tensor in self.tensors:
                torch._dynamo.mark_static_address(tensor)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.seen, self.base, self.steps, self.real

    def fits(self, rows: Counters) -> bool:
        return len(rows) == len(self.seen)

    def set(self, rows: Counters) -> None:
        """The host has moved the streams to `rows`."""
        counters = torch.tensor([rows.seen, rows.base])
        self.seen.copy_(counters[0])
        self.base.copy_(counters[1])
        self.steps.zero_()

    def step(self, active: torch.Tensor | None) -> None:
        """One more column, a token of the rows in `active` [batch] bool (None: all); part of the graph."""
        active = torch.ones_like(self.seen, dtype=torch.bool) if active is None else active
        self.seen.add_(active)
        self.real.index_copy_(1, self.steps % self.real.shape[1], active[:, None])
        self.steps.add_(1)

    def read(self) -> tuple[Counters, int, torch.Tensor]:
        """The rows now, the columns fed since `set` and, of the newest of them, which were tokens [batch, …]."""
        steps, memory = self.steps.item(), self.real.shape[1]
        newest = torch.arange(max(0, steps - memory), steps) % memory
        return Counters(tuple(self.seen.tolist()), tuple(self.base.tolist())), steps, self.real.cpu()[:, newest]
