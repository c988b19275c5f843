"""Attention with linear biases (ALiBi, arXiv 2108.12409): scores fall with the distance, and no key is rotated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Alibi:
    """The bias of one model.

    Parameters
    ----------
    slopes : torch.Tensor
        [num_attention_heads] float32, the bias of each head per position.
    scale : float, default 1.0
        The factor on the bias. Falcon scales the bias like the scores.
    dtype : torch.dtype, default float32
        Slopes and their products with positions are rounded to this type. Falcon was trained with bfloat16.
    """

    slopes: torch.Tensor
    scale: float = 1.0
    dtype: torch.dtype = torch.float32

    @property
    def facts(self) -> tuple[Any, ...]:
        """What the bias follows from, as plain data."""
        return tuple(self.slopes.tolist()), self.scale

    def bias(self, query_position: torch.Tensor, key_position: torch.Tensor) -> torch.Tensor:
        """Return the bias, which is added to the scores.

        Parameters
        ----------
        query_position : torch.Tensor
            [R, queries], cache positions of the queries.
        key_position : torch.Tensor
            [R, queries, keys], cache positions of the keys as each query sees them.

        Returns
        -------
        torch.Tensor
            [R, heads, queries, keys] float32, zero at the query's own position.
        """
        return self._at(key_position) - self._at(query_position[..., None])

    def _at(self, position: torch.Tensor) -> torch.Tensor:
        """Return what keys at `position` [R, …] add to the scores of each head, [R, heads, …] float32."""
        slopes = self.slopes.to(position.device, self.dtype)[:, None, None]
        return (slopes * position[:, None]).float() * self.scale


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Return the slopes of `num_heads` heads, [num_heads] float32.

    For a power of two n, they are a geometric sequence that begins with 2^(-8/n). For any other number of heads, n is
    the next lower power of two, and the other heads take every second slope of the sequence for 2n. The ALiBi paper
    (arXiv 2108.12409) says so in a footnote.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 / power * (i + 1) for i in range(power)]
    exponents += [4 / power * (2 * i + 1) for i in range(num_heads - power)]
    return torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float32, device="cpu")
