"""The projections that most attention modules have, for those whose attention is written out."""

from __future__ import annotations

from typing import Any

import torch


def project(module: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values, each [batch, n, heads, head_dim], of an attention module.

    Parameters
    ----------
    module : nn.Module
        It has `q_proj`, `k_proj`, `v_proj` and `head_dim`.
    hidden_states : torch.Tensor
        [batch, n, hidden_size].
    """
    query, key, value = (
        projection(hidden_states).unflatten(-1, (-1, module.head_dim))
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    return query, key, value
