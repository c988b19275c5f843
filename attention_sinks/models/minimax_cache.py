"""The bound cache of MiniMax, which accepts none but a cache of its own class."""

from __future__ import annotations

import torch
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from ..cache.states_layer import StatesLayer
from ..streaming.bound_cache import BoundCache


class BoundMiniMaxCache(BoundCache, MiniMaxCache):
    """A bound cache that the base model takes for its own cache."""

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        layer = self._states_layer(layer_idx)
        return None if layer is None else layer.recurrent_states[0]

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        layer = self._states_layer(layer_idx)
        if layer is not None:
            layer.update_recurrent_state(linear_cache)

    def _states_layer(self, layer_idx: int) -> StatesLayer | None:
        if self.cache is None:
            return None
        layer = self.cache.layers[layer_idx]
        assert isinstance(layer, StatesLayer)  # the model asks for those of linear layers alone
        return layer
