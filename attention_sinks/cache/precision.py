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

SHARED_BYTES = 2 * torch.float16.itemsize
"""What they take in each group."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""Two tensors."""


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

    A group is `GROUP` neighbours along a head, or fewer where that does not divide it. A row of uint8 is one record
    after the other: the whole numbers of a group, its scale and its offset. A byte holds two numbers of 4 bits, one of
    the first half of a group below and one of the second above. A group with a NaN or an infinity, or beyond the range
    of float16, is NaN in all its numbers; no other group is touched.

    Parameters
    ----------
    bits : int
        8 or 4.
    """

    bits: int
    dtype = torch.uint8

    def row(self, width: int) -> int:
        return width * self.bits // 8 + width // group_of(width) * SHARED_BYTES

    def encode(self, states: torch.Tensor) -> torch.Tensor:
        """Raises ValueError when no group divides the width of `states`."""
        wide, most = torch.promote_types(states.dtype, torch.float32), 2**self.bits - 1
        groups = states.to(wide).unflatten(-1, (-1, group_of(states.shape[-1])))
        least, greatest = groups.aminmax(dim=-1, keepdim=True)
        offset, from_zero = _in_half(least)
        scale, by_one = _in_half((greatest - from_zero) * (1 / most))
        numbers = ((groups - from_zero) / by_one).round_().clamp_(0, most)  # where the scale is 0, any will do
        stored = numbers.nan_to_num_(0).to(torch.uint8)
        if self.bits == 4:
            low, high = stored.chunk(2, dim=-1)
            stored = low | high << 4
        return torch.cat((stored, torch.cat((scale, offset), dim=-1).view(torch.uint8)), dim=-1).flatten(-2)

    def decode(self, stored: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        wide, groups = torch.promote_types(like.dtype, torch.float32), like.shape[-1] // group_of(like.shape[-1])
        numbers = stored.unflatten(-1, (groups, -1))[..., :-SHARED_BYTES]
        if self.bits == 4:
            numbers = torch.cat((numbers & 15, numbers >> 4), dim=-1)
        scale, offset = _shared(stored, groups)
        # addcmul would do both at once, and takes three times as long where a group shares a factor
        decoded: torch.Tensor = numbers.to(wide).mul_(scale.to(wide)).add_(offset.to(wide)).flatten(-2)
        return decoded.to(like.dtype)


def _in_half(numbers: torch.Tensor) -> Pair:
    """Return `numbers` in float16, and what that makes of them in their own dtype."""
    half = numbers.to(torch.float16)
    if not torch.compiler.is_compiling():
        return half, half.to(numbers.dtype)
    return half, _float_of(half.view(torch.int16)).to(numbers.dtype)


def _shared(stored: torch.Tensor, groups: int) -> Pair:
    """Return scales and offsets [..., groups, 1] of rows of uint8, in float16."""
    halves = stored.view(torch.float16).unflatten(-1, (groups, -1))
    return halves[..., -2:-1], halves[..., -1:]


def _float_of(bits: torch.Tensor) -> torch.Tensor:
    """Return the numbers in float32 that float16 has for `bits`, int16 or wider; infinities become NaN.

    Where code is compiled, conversions to float16 and back may be left out. This is sure to round.
    """
    bits = bits.to(torch.int32)
    numbers = ((bits & 0x7FFF) << 13 | (bits & 0x8000) << 16).view(torch.float32) * 2.0**112
    return torch.where((bits & 0x7C00) == 0x7C00, torch.nan, numbers)


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


def encoded(forms: Forms, key: torch.Tensor, value: torch.Tensor) -> Pair:
    """Return keys and values as their forms keep them. Where they are alike, one tensor is faster than two."""
    if forms[0] is not forms[1] or key.shape != value.shape:
        return forms[0].encode(key), forms[1].encode(value)
    key, value = forms[0].encode(torch.stack((key, value))).unbind()
    return key, value


def _alike(form: Form) -> Forms:
    return form, form


FORMS: Mapping[CacheDtype, Forms] = {
    "float32": _alike(InDtype(torch.float32)),
    "bfloat16": _alike(InDtype(torch.bfloat16)),
    "float16": _alike(InDtype(torch.float16)),
    "int8": _alike(InGroups(8)),
    "int8-int4": (InGroups(8), InGroups(4)),
}
"""The forms by `attention_sink_cache_dtype`. With "auto", keys and values stay in the dtype in which they come."""


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a block in which stored numbers meet each other as they are. Autocast refuses some of their dtypes."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
