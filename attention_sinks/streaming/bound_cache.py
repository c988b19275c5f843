"""What stands in for the cache while a call runs. It is the one way by which a call reaches the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..plan.call import CallPlan, LayerPlan
from ..versions import LAYER_CACHE_NAMES

if TYPE_CHECKING:
    from ..cache.cache import AttentionSinkKVCache


class CallView:
    """A cache, or none, as the base model sees it during `call`: empty, so that nothing is made for its past.

    Every layer of every architecture is handed the cache, whatever else it is handed; so the view stands there also
    where no cache is kept. Layers with states then find `NothingKept`.
    """

    def __init__(self, cache: AttentionSinkKVCache | None, call: CallPlan) -> None:
        self.cache, self.call = cache, call

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(NothingKept if self.cache is None else self.cache, name)


def name_of_view(module: torch.nn.Module, arguments: dict[str, Any]) -> str:
    """Under which name `module`, which is called with `arguments`, is handed the view of the running call."""
    for name in LAYER_CACHE_NAMES:
        if isinstance(arguments.get(name), CallView):
            return name
    raise RuntimeError(
        f"{type(module).__name__} of a model with attention sinks was called outside its model's forward; call the "
        "model, or remove_attention_sinks(model) first."
    )


class AnyLayer:
    """Every layer of a cache that is not kept: what the model notes on it is gone."""

    def __getitem__(self, layer_idx: int) -> AnyLayer:
        return self

    @property
    def indexer_position_ids(self) -> None:
        return None

    @indexer_position_ids.setter
    def indexer_position_ids(self, position_ids: torch.Tensor) -> None: ...


class NothingKept:
    """What layers with states find where no cache is kept: nothing came before, and nothing stays."""

    is_initialized = False
    layers = AnyLayer()

    @staticmethod
    def has_previous_state(*args: Any, **kwargs: Any) -> bool:
        return False

    @staticmethod
    def is_recording_past(*args: Any, **kwargs: Any) -> bool:
        return False

    @staticmethod
    def get_conv_state(*args: Any, **kwargs: Any) -> None:
        return None

    @staticmethod
    def get_recurrent_state(*args: Any, **kwargs: Any) -> None:
        return None

    @staticmethod
    def update_conv_state(conv_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return conv_states

    @staticmethod
    def update_recurrent_state(recurrent_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return recurrent_states


class LayerView:
    """A cache as the attention of one layer uses it during one call; without one, new keys are all there is."""

    def __init__(self, cache: AttentionSinkKVCache | None, call: LayerPlan) -> None:
        self.cache, self.call = cache, call

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        """Store new keys and values; returns those to attend to, which without a cache are the new ones."""
        if self.cache is None:
            return key_states, value_states
        return self.cache.layers[layer_idx].update(key_states, value_states, self.call)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)
