"""What stands in the cache's place while one call runs. It is the one way by which a call reaches the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..cache.cache import AttentionSinkKVCache
from ..plan.block import BlockPlan
from ..plan.layer import LayerPlan, Plan, to_device
from ..plan.table import LayerTable
from ..plan.token import TokenPlan, slot_places
from ..positions.alibi import Alibi
from ..positions.rotary import Rotary
from ..versions import CACHE, LAYER_CACHE_NAMES


class BoundCache:
    """A cache, or none, bound to the plans of one call.

    Every layer of every architecture is handed the cache, whatever else it is handed. So a bound cache stands there
    also where no cache is kept: attention then sees the new keys alone, and layers with states find `NothingKept`. The
    base model takes it for an empty cache, so that nothing is made for its past.

    Parameters
    ----------
    cache : AttentionSinkKVCache or None
        What keeps the keys.
    table : LayerTable
        What each layer's queries see, and how it knows where its keys are.
    plans : sequence of Plan
        One for each of `table.distinct_reaches`.
    implementation : str
        The attention implementation that the user chose.

    Attributes
    ----------
    made : dict
        Plans that layers alike share, by what makes them alike.
    running : dict
        Plans of the layers whose attention has begun, by layer index.
    """

    def __init__(
        self, cache: AttentionSinkKVCache | None, table: LayerTable, plans: Sequence[Plan], implementation: str
    ) -> None:
        self.cache, self.table, self.plans, self.implementation = cache, table, plans, implementation
        self.made: dict[tuple, LayerPlan] = {}
        self.running: dict[int, LayerPlan] = {}

    def plan_of(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        """The call as layer `layer_idx` needs it, whose states are like `like`; made once for layers that are alike."""
        table = self.table
        group = 0 if table.is_uniform else table.groups[layer_idx]  # so that uniform layers share compiled code
        key = (group, like.device, like.dtype)
        plan = self.made.get(key)
        if plan is None:
            plan = self.made[key] = self._plan_for(layer_idx, like)
        return plan

    def _plan_for(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        table, implementation = self.table, self.implementation
        reach, position = table.reaches[layer_idx], table.positions[layer_idx]
        plan = self.plans[table.plan_index[layer_idx]]
        plan = plan if like.device.type == "cpu" else to_device(plan, like.device)
        if isinstance(position, Rotary):
            delta = plan.delta if position.rotates else None
            if delta is not None and isinstance(plan, BlockPlan):
                delta = -delta  # a block rotates its queries and not the sinks
            embeddings = position.embeddings(plan.model_position, like.dtype)
            sink_rotation = None if delta is None else position.tables(delta)
            rotate = position.pairing.rotate
            return LayerPlan(reach, plan, implementation, embeddings, sink_rotation, rotate, rotary=position)
        if isinstance(position, Alibi):
            bias = None
            if isinstance(plan, TokenPlan):
                bias = position.bias(plan.cache_position, slot_places(plan, reach)[:, None])
            return LayerPlan(reach, plan, implementation, alibi=position, token_bias=bias)
        return LayerPlan(reach, plan, implementation)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values; returns those to attend to, which without a cache are the new ones."""
        if self.cache is None:
            return key_states, value_states
        layer = self.running.get(layer_idx) or self.plan_of(layer_idx, key_states)
        return self.cache.layers[layer_idx].update(key_states, value_states, layer)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(NothingKept if self.cache is None else self.cache, name)


def bound_cache_in(module: nn.Module, arguments: dict[str, Any]) -> tuple[str, BoundCache]:
    """The name under which `module`, called with `arguments`, is handed the cache; and the bound cache."""
    for name in (CACHE, *LAYER_CACHE_NAMES):
        if isinstance(arguments.get(name), BoundCache):
            return name, arguments[name]
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
