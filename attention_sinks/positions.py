"""Rotary angles and rotations, without ever running the model's rotary module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .frequencies import Frequencies

Tables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Pairing:
    """How an architecture pairs the dimensions it turns.

    Parameters
    ----------
    spread : callable
        From one angle per pair [..., d/2] to one per dimension [..., d].
    rotate : callable
        Turns states [batch, heads, n, head_dim] by cosines and sines [R, n, d]; dimensions from d on stay as they are.
    """

    spread: Callable[[torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor]


def _spread_halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat((angles, angles), dim=-1)


def _rotate_halves(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = (table.unsqueeze(1) for table in tables)
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    rotated = torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    return rotated.to(states.dtype)


HALVES = Pairing(_spread_halves, _rotate_halves)
"""Pairs (i, i + d/2), as in Llama."""


def _spread_neighbours(angles: torch.Tensor) -> torch.Tensor:
    return angles.repeat_interleave(2, dim=-1)


def _rotate_neighbours(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = (table.unsqueeze(1) for table in tables)
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    even, odd = turned[..., ::2], turned[..., 1::2]
    rotated = turned * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin
    rotated = torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    return rotated.to(states.dtype)


NEIGHBOURS = Pairing(_spread_neighbours, _rotate_neighbours)
"""Pairs (2i, 2i + 1), as in GPT-J."""


@dataclass(frozen=True)
class Rotary:
    """The angles of one kind of layer, fixed for the life of a cache.

    Parameters
    ----------
    frequencies : callable
        Gives the inverse frequencies [pairs] and the factor on cosines and sines; asked at each call, since `model.to`
        may change the buffers they are read from.
    pairing : Pairing
        How the architecture pairs dimensions.
    """

    frequencies: Frequencies
    pairing: Pairing

    def tables(self, positions: torch.Tensor) -> Tables:
        """Cosines and sines of `positions` [R, n], each [R, n, d] in float32."""
        return self._tables(positions, self.frequencies()[0])

    def embeddings(self, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        """Tables as the model's own attention expects them: with the module's scaling, in the model's dtype."""
        frequencies, scaling = self.frequencies()
        cos, sin = self._tables(positions, frequencies)
        return (cos * scaling).to(dtype), (sin * scaling).to(dtype)

    def _tables(self, positions: torch.Tensor, frequencies: torch.Tensor) -> Tables:
        """Angles are made in float64 where the device has it: in float32 they are off by 1e-4 after some thousands."""
        wide = torch.float32 if positions.device.type == "mps" else torch.float64
        angles = self.pairing.spread(positions[..., None].to(wide) * frequencies.to(positions.device, wide))
        return angles.cos().float(), angles.sin().float()
