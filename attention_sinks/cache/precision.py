"""The form in which a cache keeps keys and values: in a dtype, or as whole numbers of 8 or 4 bits in groups.

A number is rounded once, when it enters. A token of a head is one row of a buffer in every form, so whatever moves
slots and rows moves rounded tokens as it moves others.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import gcd
from typing import Any, Protocol

import torch

from ..settings import CacheDtype

GROUP = 32
"""The most numbers that share a scale and an offset."""

LEAST_GROUP = 8
"""The fewest: in smaller groups these would take as much room as the numbers."""


class Form(Protocol):
    """How numbers are kept."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a buffer."""
        ...

    def row(self, width: int) -> int:
        """Return how many elements of that dtype a head of `width` numbers takes; ValueError when it cannot be."""
        ...

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Return `states` [..., width] as a buffer keeps them, [..., row]."""
        ...

    def decode(self, stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return what `encode` was given, rounded, in the dtype and with the width of `like`."""
        ...


@dataclass(frozen=True)
class InDtype:
    """Numbers in a floating dtype.

    Parameters
    ----------
    dtype : torch.dtype
        The dtype.
    """

    dtype: torch.dtype

    def row(self, width: int) -> int:
        return width

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        return states.to(self.dtype)

    def decode(self, stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return stored.to(like.dtype)


@dataclass(frozen=True)
class InGroups:
    """Whole numbers of a few bits, which a scale and an offset in float16 bring to where the numbers of a group lie.

    A group is `GROUP` neighbours along a head, or fewer where that does not divide it. A row of uint8 holds the whole
    numbers of a token, two of 4 bits in a byte, and behind them the scales and the offsets of its groups. A group with
    a NaN or an infinity, or beyond the range of float16, is NaN in all its numbers; no other group is touched.

    Parameters
    ----------
    bits : int
        8 or 4.
    """

    bits: int
    dtype = torch.uint8

    def row(self, width: int) -> int:
        return width * self.bits // 8 + width // group_of(width) * 2 * torch.float16.itemsize

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Raises ValueError when no group divides the width of `states`."""
        wide = torch.promote_types(states.dtype, torch.float32)
        groups = states.to(wide).unflatten(-1, (-1, group_of(states.shape[-1])))
        first = groups.amin(dim=-1, keepdim=True).to(torch.float16).view(torch.int16)
        offset = _float_of(first).to(wide)
        last = (groups.amax(dim=-1, keepdim=True) - offset) * (1 / self._most)
        distance = last.to(torch.float16).view(torch.int16)
        scale = _float_of(distance).to(wide)
        numbers = ((groups - offset) / torch.where(scale == 0, 1, scale)).round().clamp(0, self._most)
        numbers = numbers.nan_to_num(0).to(torch.uint8).flatten(-2)
        if self.bits == 4:
            numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
        shared = torch.cat([distance.flatten(-2), first.flatten(-2)], dim=-1)
        return torch.cat([numbers, shared.view(torch.uint8)], dim=-1)

    def decode(self, stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        width = like.shape[-1]
        group, size = group_of(width), width * self.bits // 8
        numbers, shared = stored[..., :size], _halves(stored[..., size:])
        if self.bits == 4:
            numbers = torch.stack((numbers & 15, numbers >> 4), dim=-1).flatten(-2)
        wide = torch.promote_types(like.dtype, torch.float32)
        scale, offset = shared.to(wide).unflatten(-1, (2, width // group, 1)).unbind(-3)
        groups = torch.addcmul(offset, numbers.to(wide).unflatten(-1, (-1, group)), scale)
        return groups.flatten(-2).to(like.dtype)

    @property
    def _most(self) -> int:
        """The largest whole number."""
        most: int = 2**self.bits - 1
        return most


def _float_of(bits: torch.Tensor) -> torch.Tensor:
    """Return the numbers in float32 that float16 has for `bits`, int16 or wider; infinities become NaN.

    Where code is compiled, conversions to float16 and back may be left out. This is sure to round.
    """
    bits = bits.to(torch.int32)
    numbers = ((bits & 0x7FFF) << 13 | (bits & 0x8000) << 16).view(torch.float32) * 2.0**112
    return torch.where((bits & 0x7C00) == 0x7C00, torch.nan, numbers)


def _halves(stored: torch.Tensor) -> torch.Tensor:
    """Return the float16 numbers in `stored` [..., 2 n] uint8 as [..., n]."""
    if not torch.compiler.is_compiling():
        return stored.view(torch.float16)
    low, high = stored.to(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)  # compiled code puts this into one loop
    return _float_of(low | high << 8)


def group_of(width: int) -> int:
    """Return how many numbers of a head of `width` numbers share a scale; ValueError when no group divides it."""
    group = gcd(width, GROUP)
    if group < LEAST_GROUP:
        raise ValueError(
            f"heads of {width} numbers have no groups of 32, 16 or 8, in which a cache keeps whole numbers; choose "
            "attention_sink_cache_dtype='bfloat16' or 'float16'."
        )
    return group


Forms = tuple[Form, Form]
"""The forms of keys and of values."""

FORMS: Mapping[CacheDtype, Forms] = {
    "float32": (InDtype(torch.float32), InDtype(torch.float32)),
    "bfloat16": (InDtype(torch.bfloat16), InDtype(torch.bfloat16)),
    "float16": (InDtype(torch.float16), InDtype(torch.float16)),
    "int8": (InGroups(8), InGroups(8)),
    "int8-int4": (InGroups(8), InGroups(4)),
}
"""The forms by `attention_sink_cache_dtype`. With "auto", keys and values stay in the dtype in which they come."""


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a block in which stored numbers meet each other as they are. Autocast refuses some of their dtypes."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
