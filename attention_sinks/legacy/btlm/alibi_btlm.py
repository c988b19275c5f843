"""ALiBi (arXiv 2108.12409) as BTLM and JAIS store and use it."""

from __future__ import annotations

import torch
from torch import nn

from ...positions.alibi import alibi_slopes
from .configuration_btlm import BtlmConfig


class BtlmAlibi(nn.Module):
    """Add the bias -slope x distance to a mask. The slopes are part of the checkpoint.

    Attributes
    ----------
    slopes : torch.Tensor
        [heads, 1], as the checkpoint stores them.
    """

    slopes: torch.Tensor

    def __init__(self, config: BtlmConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slopes", alibi_slopes(config.n_head)[:, None])

    def scaled_slopes(self, visible: int) -> torch.Tensor:
        """Return the slopes [heads] float32 for queries that see up to `visible` keys."""
        return self.slopes[:, 0].float() / self.config.alibi_factor(visible)

    def forward(
        self, mask: torch.Tensor | None, past: int, columns: int, keys: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return mask and bias in one, which attention adds to the scores of a call.

        Distances are counted in columns, because padding on the left moves queries and keys alike.

        Parameters
        ----------
        mask : torch.Tensor or None
            [batch, 1, columns, keys], bool and True where a key is visible, or float and added to the scores. None
            stands for a causal mask.
        past : int
            Number of columns before the call.
        columns, keys : int
            Numbers of queries and keys.
        dtype : torch.dtype
            The type of the result.

        Returns
        -------
        torch.Tensor
            [batch or 1, heads, columns, keys].
        """
        key = torch.arange(keys, dtype=torch.long, device=self.slopes.device)
        query = past + torch.arange(columns, dtype=torch.long, device=self.slopes.device)[:, None]
        bias = -self.scaled_slopes(past + columns)[:, None, None] * (query - key).abs()[None, None]
        lowest = torch.finfo(dtype).min
        mask = (key <= query)[None, None] if mask is None else mask
        bias = torch.where(mask, bias, lowest) if mask.dtype == torch.bool else (bias + mask).clamp(min=lowest)
        return bias.to(dtype)
