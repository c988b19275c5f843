"""DeepSeek-V3.2 and what has its sparse attention: latent attention to the tokens that an indexer scores highest.

The indexer leaves nothing out while a query sees no more tokens than it selects (`config.index_topk`, 2,048 as a rule).
Up to there, which is what a row allows, it does not run, and no keys of its own are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.spec import Architecture, Limit
from ..positions.rotary import TRAILING_HALVES, Pairing, Tables
from ..positions.schemes import Rope


def _indexer(indexer: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of an indexer's forward: an empty selection, which our attention does not look at."""
    return torch.empty(0, dtype=torch.int32, device=hidden_states.device)


def _indexers(model: PreTrainedModel, base: PreTrainedModel) -> list[tuple[nn.Module, dict[str, Any]]]:
    attention = (getattr(layer, "self_attn", None) for layer in base.layers)
    found = (getattr(module, "indexer", None) for module in attention)
    return [(indexer, {"forward": _indexer}) for indexer in found if indexer is not None]


def _limit(config: PreTrainedConfig) -> Limit:
    most = config.index_topk
    return Limit(most, f"beyond config.index_topk={most} its indexer leaves keys out, which is not computed")


def _embed_wide(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    angles = TRAILING_HALVES.spread(angles)
    return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()


WIDE_TRAILING_HALVES = replace(TRAILING_HALVES, embed=_embed_wide)
"""Halves of the last dimensions, by attention that is handed float32 tables whatever its own dtype, as in Dots 3."""


def sparse(attention: str, pairing: Pairing = TRAILING_HALVES) -> Architecture:
    """The row of a model whose attention modules are `attention` and have an indexer each, or use that of another."""
    return Architecture(attention, Rope(pairing), rotated="values", extra_patches=_indexers, limit=_limit)
