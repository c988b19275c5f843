"""The counters of a cache as tensors, for steps inside a compiled graph."""

from __future__ import annotations

import torch

from ..plan.counters import Counters


class DeviceCounters:
    """`Counters` for steps inside one graph, in which a Python number would be a constant.

    The tensors are written in place and never replaced. The host reads from them which steps were taken since `set`.

    Attributes
    ----------
    seen, origin : torch.Tensor
        [batch] int64, as in `Counters`.
    steps : torch.Tensor
        [1] int64, columns fed since the last `set`.
    real : torch.Tensor
        [batch, memory] bool, a ring that tells which of the last columns were tokens of each row.
    """

    def __init__(self, counters: Counters, memory: int, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.seen, self.origin = _both(counters, device).unbind()
            self.steps = torch.zeros(1, dtype=torch.long, device=device)
            self.real = torch.zeros(len(counters), memory, dtype=torch.bool, device=device)
        if device.type == "cuda":  # a CUDA graph would copy what it does not know to stay where it is
            for tensor in self.tensors:
                torch._dynamo.mark_static_address(tensor)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.seen, self.origin, self.steps, self.real

    def set(self, counters: Counters) -> None:
        """Write the counters of the host, which has moved the streams."""
        seen, origin = _both(counters, self.seen.device)
        self.seen.copy_(seen)
        self.origin.copy_(origin)
        self.steps.zero_()

    def step(self, active: torch.Tensor | None) -> None:
        """Count one more column, a token of the rows in `active` [batch] bool (None: all), as part of the graph."""
        active = torch.ones_like(self.seen, dtype=torch.bool) if active is None else active
        self.seen.add_(active)
        self.real.index_copy_(1, self.steps % self.real.shape[1], active[:, None])
        self.steps.add_(1)

    def read(self) -> tuple[Counters, int, torch.Tensor]:
        """Return the counters, the columns fed since `set`, and which of the newest columns were tokens [batch, …]."""
        steps, memory = int(self.steps), self.real.shape[1]
        newest = torch.arange(max(0, steps - memory), steps, dtype=torch.long, device="cpu") % memory
        return Counters(tuple(self.seen.tolist()), tuple(self.origin.tolist())), steps, self.real.cpu()[:, newest]


def _both(counters: Counters, device: torch.device) -> torch.Tensor:
    return torch.tensor([counters.seen, counters.origin], dtype=torch.long, device="cpu").to(device)
