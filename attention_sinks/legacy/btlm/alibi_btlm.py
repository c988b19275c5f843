"""ALiBi (arXiv 2108.12409) as BTLM and JAIS store and use it."""

from __future__ import annotations

import torch
from torch import nn

from ...positions.alibi import alibi_slopes
from .configuration_btlm import BtlmConfig


class BtlmAlibi(nn.Module):
    """Adds the bias -slope x distance to a mask; its slopes are part of the checkpoint.

    Attributes
    ----------
    slopes : torch.Tensor
        [heads, 1], as stored.
    """

    def __init__(self, config: BtlmConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("slopes", alibi_slopes(config.n_head)[:, None])

    def scaled_slopes(self, visible: int) -> torch.Tensor:
        """[heads] float32, the slopes where queries see up to `visible` keys."""
        return self.slopes[:, 0].float() / self.config.alibi_factor(visible)

    def forward(self, mask: torch.Tensor | None, past: int, columns: int, keys: int, dtype: torch.dtype):
        """[batch or 1, heads, columns, keys] in `dtype`, what is added to the scores of the queries of a call.

        Distances are counted in columns: padding on the left moves queries and keys alike.

        Parameters
        ----------
        mask : torch.Tensor or None
            [batch, 1, columns, keys], True where visible, or what is added to the scores; None: nothing but causal.
        past : int
            Columns before the call.
        """
        key = torch.arange(keys, device=self.slopes.device)
        query = past + torch.arange(columns, device=self.slopes.device)[:, None]
        bias = -self.scaled_slopes(past + columns)[:, None, None] * (query - key).abs()[None, None]
        lowest = torch.finfo(dtype).min
        mask = (key <= query)[None, None] if mask is None else mask
        bias = torch.where(mask, bias, lowest) if mask.dtype == torch.bool else (bias + mask).clamp(min=lowest)
        return bias.to(dtype)
