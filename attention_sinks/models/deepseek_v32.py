"""DeepSeek-V3.2 and others have latent attention to the tokens that an indexer scores highest.

The indexer leaves nothing out while a query sees no more tokens than it selects (`config.index_topk`, 2,048 as a rule).
A cache may not be larger than that, so the indexer does not run, and it keeps no keys.
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
    """Return an empty selection in place of an indexer's. Our attention does not read it."""
    return torch.empty(0, dtype=torch.int32, device=hidden_states.device)


def _indexers(model: PreTrainedModel, base_model: Any) -> list[tuple[nn.Module, dict[str, Any]]]:
    attention = (getattr(layer, "self_attn", None) for layer in base_model.layers)
    found = (getattr(module, "indexer", None) for module in attention)
    return [(indexer, {"forward": _indexer}) for indexer in found if indexer is not None]


def _limit(config: PreTrainedConfig) -> Limit:
    most = config.index_topk
    return Limit(most, f"beyond config.index_topk={most} its indexer leaves keys out, which is not computed")


def _embed_wide(angles: torch.Tensor, scaling: float, dtype: torch.dtype) -> Tables:
    angles = TRAILING_HALVES.spread(angles)
    return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()


WIDE_TRAILING_HALVES = replace(TRAILING_HALVES, embed=_embed_wide)
"""Halves of the last dimensions, where attention receives float32 tables whatever its own dtype, as in Dots 3."""


def sparse(attention: str, pairing: Pairing = TRAILING_HALVES) -> Architecture:
    """Return the entry of a model in which attention modules of the class `attention` share or have indexers."""
    return Architecture(attention, Rope(pairing), rotated="values", extra_patches=_indexers, limit=_limit)
