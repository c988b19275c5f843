"""Attention with linear biases (ALiBi, arXiv 2108.12409): scores fall with distance, nothing is rotated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Alibi:
    """The bias of one model.

    Parameters
    ----------
    slopes : torch.Tensor
        [num_attention_heads] float32.
    scale : float, default 1.0
        Factor on the bias; Falcon scales it like the scores.
    dtype : torch.dtype, default float32
        Slopes and their products with positions are rounded to it; Falcon was trained with bfloat16.
    """

    slopes: torch.Tensor
    scale: float = 1.0
    dtype: torch.dtype = torch.float32

    def bias(self, query_position: torch.Tensor, key_position: torch.Tensor) -> torch.Tensor:
        """What is added to the scores.

        Parameters
        ----------
        query_position : torch.Tensor
            [R, queries], places within the cache.
        key_position : torch.Tensor
            [R, queries, keys], places within the cache as each query sees them.

        Returns
        -------
        torch.Tensor
            [R, heads, queries, keys] float32, zero at the query's own place.
        """
        return self._at(key_position) - self._at(query_position[..., None])

    def _at(self, position: torch.Tensor) -> torch.Tensor:
        slopes = self.slopes.to(position.device, self.dtype)[:, None, None]
        return (slopes * position[:, None]).float() * self.scale


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """[num_heads] slopes: a geometric sequence from 2^(-8/n), and for n that is no power of two every second one of
    the next longer sequence for the heads that are left (the paper's footnote on such head counts)."""
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 / power * (i + 1) for i in range(power)]
    exponents += [4 / power * (2 * i + 1) for i in range(num_heads - power)]
    return torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float32)
