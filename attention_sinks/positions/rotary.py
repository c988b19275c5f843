"""Rotary angles and rotations (RoPE, arXiv 2104.09864). They are made without running the model's rotary module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .frequencies import Frequencies, LongTextFrequencies

Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines."""


@dataclass(frozen=True)
class Pairing:
    """The way in which an architecture pairs the dimensions that it rotates.

    Parameters
    ----------
    spread : callable
        (one angle per pair [..., d/2]) -> one angle per dimension [..., d].
    rotate : callable
        (states [batch, heads, n, head_dim], cosines and sines [R, n, d]) -> states with d dimensions rotated. The other
        dimensions stay as they are.
    embed : callable, optional
        (angles [..., d/2], factor, dtype) -> the positions that the model's own attention expects. The default gives
        the cosines and sines of the spread angles, times the factor.
    """

    spread: Callable[[torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor]
    embed: Callable[[torch.Tensor, float, torch.dtype], Any] | None = None


def _spread_halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat((angles, angles), dim=-1)


def _rotate_halves(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = tables[0].unsqueeze(1), tables[1].unsqueeze(1)
    width = cos.shape[-1]
    whole = width == states.shape[-1]
    rotating = states if whole else states[..., :width]
    first, second = rotating.chunk(2, dim=-1)
    rotated = rotating * cos + torch.cat((-second, first), dim=-1) * sin
    rotated = rotated if whole else torch.cat((rotated, states[..., width:]), dim=-1)
    return rotated.to(states.dtype)


HALVES = Pairing(_spread_halves, _rotate_halves)
"""Pairs (i, i + d/2), as in Llama."""


def _spread_neighbours(angles: torch.Tensor) -> torch.Tensor:
    return angles.repeat_interleave(2, dim=-1)


def _rotate_neighbours(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = tables[0].unsqueeze(1), tables[1].unsqueeze(1)
    width = cos.shape[-1]
    whole = width == states.shape[-1]
    rotating = states if whole else states[..., :width]
    even, odd = rotating[..., ::2], rotating[..., 1::2]
    rotated = rotating * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin
    rotated = rotated if whole else torch.cat((rotated, states[..., width:]), dim=-1)
    return rotated.to(states.dtype)


NEIGHBOURS = Pairing(_spread_neighbours, _rotate_neighbours)
"""Pairs (2i, 2i + 1), as in GPT-J."""


def _embed_halves(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    angles = _spread_halves(angles)
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


NEIGHBOURS_FROM_HALVES = replace(NEIGHBOURS, embed=_embed_halves)
"""Pairs (2i, 2i + 1) where attention receives tables for halves and reorders them itself, as in GLM."""


def _embed_pairs(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)


HALVES_BY_PAIR = replace(HALVES, embed=_embed_pairs)
"""Halves where attention receives one angle per pair, as in gpt-oss."""


def _embed_sine_first(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return (angles.sin() * scaling).to(dtype), (angles.cos() * scaling).to(dtype)


NEIGHBOURS_SINE_FIRST = replace(NEIGHBOURS, embed=_embed_sine_first)
"""Pairs (2i, 2i + 1) where attention receives the sine of each pair, then the cosine, as in GPT-J since 5.24."""


def _embed_sine_first_wide(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    return _embed_sine_first(angles, scaling, torch.float32)


NEIGHBOURS_SINE_FIRST_WIDE = replace(NEIGHBOURS, embed=_embed_sine_first_wide)
"""The same with tables in float32 for every dtype of the model, as in CodeGen since 5.24."""


def _embed_complex(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.polar(torch.full_like(angles, scaling), angles).to(torch.complex64)


COMPLEX = replace(NEIGHBOURS, embed=_embed_complex)
"""Pairs (2i, 2i + 1) that are treated as complex numbers, as in Llama 4."""


def _rotate_trailing(
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor], states: torch.Tensor, tables: Tables
) -> torch.Tensor:
    width = tables[0].shape[-1]
    rest, rotating = states[..., :-width], states[..., -width:]
    return torch.cat((rest, rotate(rotating, tables)), dim=-1)


TRAILING_HALVES = replace(HALVES, rotate=partial(_rotate_trailing, _rotate_halves))
"""Halves of the last dimensions, as in latent attention."""

TRAILING_COMPLEX = replace(COMPLEX, rotate=partial(_rotate_trailing, _rotate_neighbours))
"""Neighbours in the last dimensions, as complex numbers, as in DeepSeek-V2."""

TRAILING_NEIGHBOURS_FROM_HALVES = replace(NEIGHBOURS_FROM_HALVES, rotate=partial(_rotate_trailing, _rotate_neighbours))
"""Neighbours in the last dimensions where attention reorders tables for halves itself, as in HY-V4-VL."""


def _rotate_back(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    return _rotate_halves(states, (tables[0], -tables[1]))


HALVES_BACKWARDS = replace(HALVES, rotate=_rotate_back)
"""Halves that are rotated the other way, as in nanochat."""


@dataclass(frozen=True)
class Rotary:
    """The angles of one kind of layer, fixed for the life of a cache.

    Parameters
    ----------
    frequencies : Frequencies
        Where the inverse frequencies and the factor on cosines and sines are found.
    pairing : Pairing
        How the architecture pairs dimensions.
    rotates : bool, default True
        False for a layer that receives cosines and sines but does not rotate its queries and keys.
    """

    frequencies: Frequencies
    pairing: Pairing
    rotates: bool = True

    @property
    def facts(self) -> tuple[Any, ...]:
        """What the angles follow from, as plain data."""
        return self.frequencies.facts

    def tables(self, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        """Return cosines and sines of `positions` [R, n], each [R, n, d], in float32 or in `dtype` if that is wider."""
        cos, sin = self._cosines_and_sines(positions)
        wide = torch.promote_types(dtype, torch.float32)
        return cos.to(wide), sin.to(wide)

    def embeddings(self, positions: torch.Tensor, dtype: torch.dtype) -> Any:
        """Return the positions that the model's own attention receives, with the module's factor on them.

        As a rule they are cosines and sines [R, n, d] in `dtype`, the dtype of the model.
        """
        if self.pairing.embed is not None:
            return self.pairing.embed(self._angles(positions), self._scaling, dtype)
        cos, sin = self._cosines_and_sines(positions)
        return _scaled(cos, self._scaling, dtype), _scaled(sin, self._scaling, dtype)

    def embeddings_and_tables(
        self, positions: torch.Tensor, dtype: torch.dtype, others: torch.Tensor
    ) -> tuple[Any, Tables]:
        """Return `embeddings(positions, dtype)` and `tables(others, dtype)`, `others` [R, m].

        Their angles are made together.
        """
        if self.pairing.embed is not None:
            return self.embeddings(positions, dtype), self.tables(others, dtype)
        sizes = [positions.shape[1], others.shape[1]]
        (cos, other_cos), (sin, other_sin) = (
            table.split(sizes, dim=1) for table in self._cosines_and_sines(torch.cat((positions, others), dim=1))
        )
        embeddings = _scaled(cos, self._scaling, dtype), _scaled(sin, self._scaling, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return embeddings, (other_cos.to(wide), other_sin.to(wide))

    @property
    def _scaling(self) -> float:
        scaling: float = getattr(self.frequencies.holder, self.frequencies.scaling)
        return scaling

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Return angles [R, n, pairs] in float64, or in float32 on a device without it.

        In float32, angles are wrong by 1e-4 after some thousand positions.
        """
        inv_freq: torch.Tensor = getattr(self.frequencies.holder, self.frequencies.inv_freq)
        wide = torch.float32 if positions.device.type == "mps" else torch.float64
        return positions[..., None].to(wide) * inv_freq.to(positions.device, wide)

    def _cosines_and_sines(self, positions: torch.Tensor) -> Tables:
        angles = self.pairing.spread(self._angles(positions))
        return angles.cos(), angles.sin()


def _scaled(table: torch.Tensor, scaling: float, dtype: torch.dtype) -> torch.Tensor:
    return (table if scaling == 1 else table * scaling).to(dtype)


@dataclass(frozen=True)
class Source:
    """Where in a model frequencies were read, to notice when somebody replaces or changes what was there.

    Parameters
    ----------
    owner : nn.Module
        The module that has `module`.
    name : str
        The name of `module` there.
    module : nn.Module
        The rotary module.
    attribute : str
        The name of its attribute with the inverse frequencies.
    scaling : str
        The name of the attribute with the factor on cosines and sines.
    tensor : torch.Tensor
        What that was.
    state : tuple
        The version of `tensor` and the factor.
    """

    owner: Any
    name: str
    module: Any
    attribute: str
    scaling: str
    tensor: torch.Tensor
    state: tuple[Any, ...]

    def is_current(self) -> bool:
        """Return whether the model still has this module, and it what was read."""
        module, tensor = self.module, self.tensor
        return (
            self.owner._modules.get(self.name) is module
            and getattr(module, self.attribute) is tensor
            and self.state == (None if tensor.is_inference() else tensor._version, getattr(module, self.scaling, None))
        )

    def is_the_place_of(self, other: Source) -> bool:
        """Return whether both were read at the same place."""
        return (self.module, self.attribute, self.scaling) == (other.module, other.attribute, other.scaling)

    def has_its_dtype(self) -> bool:
        """Return whether the model still has this module in its dtype, which is all that a graph can ask."""
        dtype: torch.dtype = getattr(self.module, self.attribute).dtype
        return self.owner._modules.get(self.name) is self.module and dtype == self.tensor.dtype


def source_of(model: Any, frequencies: Frequencies) -> Source | None:
    """Return where `frequencies` are read in `model`; None when they are in no module of it."""
    holder, attribute = frequencies.holder, frequencies.inv_freq
    module = holder
    if isinstance(holder, LongTextFrequencies):
        module, attribute = holder.module, holder.attribute
    for owner in model.modules():
        for name, child in owner._modules.items():
            if child is module:
                tensor = getattr(module, attribute)
                version = None if tensor.is_inference() else tensor._version
                state = version, getattr(module, frequencies.scaling, None)
                return Source(owner, name, module, attribute, frequencies.scaling, tensor, state)
    return None
