"""What stands in for the cache while a call runs: it carries the call to layers that are handed nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .call import Call, LayerCall

if TYPE_CHECKING:
    from .cache import AttentionSinkKVCache

CACHE_ARGUMENTS = ("past_key_values", "layer_past")
"""The names under which attention modules are handed the cache."""


class CallView:
    """A cache, or none, as the base model sees it during `call`: empty, so that nothing is made for its past."""

    def __init__(self, cache: AttentionSinkKVCache | None, call: Call) -> None:
        self.cache, self.call = cache, call

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


class LayerView:
    """A cache, or none, as the attention of one layer uses it during one call."""

    def __init__(self, cache: AttentionSinkKVCache | None, call: LayerCall) -> None:
        self.cache, self.call = cache, call

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        """Store new keys and values; returns those to attend to, which without a cache are the new ones."""
        if self.cache is None:
            return key_states, value_states
        return self.cache.layers[layer_idx].update(key_states, value_states, self.call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)
