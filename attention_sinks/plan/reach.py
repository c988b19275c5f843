"""A reach says what the queries of a layer see, and in which slot each token lies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Reach:
    """What the queries of a layer see besides themselves.

    Parameters
    ----------
    sink_size : int
        S, how many sinks they see.
    window_size : int
        W, how many recent tokens they see.
    dense : bool, default False
        Whether the tokens of one call see every cached token and each other, whatever their distance.
    chunked : bool, default False
        Whether they see nothing before the last multiple of W + 1 in their stream.

    Attributes
    ----------
    cached_size : int
        S + W, the most tokens that count as cached.
    visible_size : int
        S + W + 1, the most keys a query sees, and the number of slots.
    """

    sink_size: int
    window_size: int
    dense: bool = False
    chunked: bool = False
    cached_size: int = field(init=False, repr=False, compare=False)
    visible_size: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cached_size", self.sink_size + self.window_size)
        object.__setattr__(self, "visible_size", self.sink_size + self.window_size + 1)

    def slot_of(self, position: torch.Tensor) -> torch.Tensor:
        """Return the slot of the token at each stream position. Sinks and the first window lie in order."""
        ring = (position - self.sink_size) % (self.window_size + 1) + self.sink_size
        return torch.where(position < self.sink_size, position, ring)
