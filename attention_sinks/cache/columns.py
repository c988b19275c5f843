"""Picking columns out of keys and values, by one index for all rows or one per row."""

from __future__ import annotations

import torch


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`states` [batch, heads, n, d] at the columns `index` [R, m] of its third dimension."""
    if index.shape[0] == 1:
        return states.index_select(2, index[0])
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
