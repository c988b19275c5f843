"""Rotary angles and rotations, without ever running the model's rotary module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
        Turns states [batch, heads, n, head_dim] by cosines and sines [R, n, d]; the other dimensions stay as they are.
    embed : callable, optional
        From angles [..., d/2] and a factor to what the model's own attention expects: by default the cosines and sines
        of the spread angles.
    """

    spread: Callable[[torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor]
    embed: Callable[[torch.Tensor, float, torch.dtype], Any] | None = None


def _spread_halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat((angles, angles), dim=-1)


def _rotate_halves(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = tables[0].unsqueeze(1), tables[1].unsqueeze(1)
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
    cos, sin = tables[0].unsqueeze(1), tables[1].unsqueeze(1)
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    even, odd = turned[..., ::2], turned[..., 1::2]
    rotated = turned * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin
    rotated = torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    return rotated.to(states.dtype)


NEIGHBOURS = Pairing(_spread_neighbours, _rotate_neighbours)
"""Pairs (2i, 2i + 1), as in GPT-J."""


def _embed_halves(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    angles = _spread_halves(angles)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


NEIGHBOURS_FROM_HALVES = replace(NEIGHBOURS, embed=_embed_halves)
"""Pairs (2i, 2i + 1), by attention that is handed tables for halves and orders them itself, as in GLM."""


def _embed_pairs(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


HALVES_BY_PAIR = replace(HALVES, embed=_embed_pairs)
"""Halves, by attention that is handed one angle per pair, as in gpt-oss."""


def _embed_sine_first(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return (angles.sin() * scaling).to(dtype), (angles.cos() * scaling).to(dtype)


NEIGHBOURS_SINE_FIRST = replace(NEIGHBOURS, embed=_embed_sine_first)
"""Pairs (2i, 2i + 1), by attention that is handed the sine of each pair, then the cosine, as in GPT-J since 5.24."""


def _embed_sine_first_wide(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return _embed_sine_first(angles, scaling, torch.float32)


NEIGHBOURS_SINE_FIRST_WIDE = replace(NEIGHBOURS, embed=_embed_sine_first_wide)
"""The same in float32 whatever the model's dtype, as in CodeGen since 5.24."""


def _embed_complex(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.polar(torch.full_like(angles, scaling), angles).to(torch.complex64)


COMPLEX = replace(NEIGHBOURS, embed=_embed_complex)
"""Pairs (2i, 2i + 1), taken as complex numbers, as in Llama 4."""


def _rotate_trailing(rotate: Callable, states: torch.Tensor, tables: Tables) -> torch.Tensor:
    rest, turned = states.split([states.shape[-1] - tables[0].shape[-1], tables[0].shape[-1]], dim=-1)
    return torch.cat((rest, rotate(turned, tables)), dim=-1)


TRAILING_HALVES = replace(HALVES, rotate=partial(_rotate_trailing, _rotate_halves))
"""Halves of the last dimensions, as in latent attention."""

TRAILING_COMPLEX = replace(COMPLEX, rotate=partial(_rotate_trailing, _rotate_neighbours))
"""Neighbours in the last dimensions, as complex numbers, as in DeepSeek-V2."""

TRAILING_NEIGHBOURS_FROM_HALVES = replace(NEIGHBOURS_FROM_HALVES, rotate=partial(_rotate_trailing, _rotate_neighbours))
"""Neighbours in the last dimensions, by attention that orders tables for halves itself, as in HY-V4-VL."""


def _rotate_back(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    return _rotate_halves(states, (tables[0], -tables[1]))


HALVES_BACKWARDS = replace(HALVES, rotate=_rotate_back)
"""Halves, turned the other way, as in nanochat."""


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
    rotates : bool, default True
        False for a layer that is handed cosines and sines but leaves its queries and keys as they are.
    """

    frequencies: Frequencies
    pairing: Pairing
    rotates: bool = True

    def tables(self, positions: torch.Tensor) -> Tables:
        """Cosines and sines of `positions` [R, n], each [R, n, d] in float32."""
        angles = self.pairing.spread(_angles(positions, self.frequencies()[0]))
        return angles.cos().float(), angles.sin().float()

    def embeddings(self, positions: torch.Tensor, dtype: torch.dtype) -> Any:
        """What the model's own attention is handed: with the module's scaling, as a rule in the model's dtype."""
        frequencies, scaling = self.frequencies()
        angles = _angles(positions, frequencies)
        if self.pairing.embed is not None:
            return self.pairing.embed(angles, scaling, dtype)
        angles = self.pairing.spread(angles)
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


def _angles(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """[R, n, pairs], in float64 where the device has it: in float32 they are off by 1e-4 after some thousands."""
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    return positions[..., None].to(wide) * frequencies.to(positions.device, wide)
