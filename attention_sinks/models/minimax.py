"""MiniMax: linear layers that keep their state in a cache class of its own."""

from __future__ import annotations

import torch
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from ..architecture.spec import Architecture
from ..streaming.bound_cache import BoundCache


class BoundMiniMaxCache(BoundCache, MiniMaxCache):
    """What the base model takes for its own cache."""

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        return self.cache.layers[layer_idx].recurrent_states[0] if self.cache is not None else None

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        if self.cache is not None:
            self.cache.layers[layer_idx].update_recurrent_state(linear_cache)


ARCHITECTURE = Architecture("MiniMaxAttention", bound_cache=BoundMiniMaxCache)
