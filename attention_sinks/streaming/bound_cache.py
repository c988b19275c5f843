"""A bound cache stands in the cache's place while a call runs. It is the one way by which a call reaches the layers."""

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

    Every layer of every architecture is handed the cache, whatever else it is handed. So a bound cache is handed to
    layers also where no cache is kept: attention then sees only the new keys, and layers with states find
    `NothingKept`. The base model takes it for an empty cache, so that it makes nothing for a past.

    Parameters
    ----------
    cache : AttentionSinkKVCache or None
        The cache that keeps the keys; None where no cache is kept.
    table : LayerTable
        What each layer's queries see, and how it knows where its keys are.
    plans : sequence of Plan
        One plan for each of `table.distinct_reaches`.
    implementation : str
        The attention implementation that the user chose.

    Attributes
    ----------
    made : dict
        Plans that layers share, by what these layers have in common: group, device and dtype.
    running : dict
        Plans of the layers whose attention has begun, by layer index.
    """

    def __init__(
        self, cache: AttentionSinkKVCache | None, table: LayerTable, plans: Sequence[Plan], implementation: str
    ) -> None:
        self.cache, self.table, self.plans, self.implementation = cache, table, plans, implementation
        self.made: dict[tuple[int, torch.device, torch.dtype], LayerPlan] = {}
        self.running: dict[int, LayerPlan] = {}

    def plan_of(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        """Return the plan of layer `layer_idx`, whose states have the device and the dtype of `like`.

        It is made once for all layers that are alike.
        """
        table = self.table
        group = 0 if table.is_uniform else table.groups[layer_idx]  # so that uniform layers share compiled code
        key = (group, like.device, like.dtype)
        plan = self.made.get(key)
        if plan is None:
            plan = self.made[key] = self._plan_for(layer_idx, like)
        return plan

    def _plan_for(self, layer_idx: int, like: torch.Tensor) -> LayerPlan:
        table, implementation = self.table, self.implementation
        reach, position, index = table.reaches[layer_idx], table.positions[layer_idx], table.plan_index[layer_idx]
        assert reach is not None and index is not None  # only layers with attention ask for a plan
        plan = self.plans[index] if like.device.type == "cpu" else to_device(self.plans[index], like.device)
        if isinstance(position, Rotary):
            delta = plan.delta if position.rotates else None
            if delta is not None and isinstance(plan, BlockPlan):
                delta = -delta  # a block rotates its queries towards the sinks, not the sinks towards its queries
            if delta is None:
                embeddings, sink_rotation = position.embeddings(plan.model_position, like.dtype), None
            else:
                embeddings, sink_rotation = position.embeddings_and_tables(plan.model_position, like.dtype, delta)
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
        """Store new keys and values, and return those to attend to. Without a cache, these are the new ones."""
        if self.cache is None:
            return key_states, value_states
        layer = self.running.get(layer_idx) or self.plan_of(layer_idx, key_states)
        return self.cache.layers[layer_idx].update(key_states, value_states, layer)

    # ---- what Transformers asks of a cache: this one looks empty

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        """Return what the cache has under `name`, or `NothingKept` where there is no cache."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(NothingKept if self.cache is None else self.cache, name)


def bound_cache_in(module: nn.Module, arguments: dict[str, Any]) -> tuple[str, BoundCache]:
    """Return the name under which `module` is handed the cache in `arguments`, and the bound cache.

    Raises
    ------
    RuntimeError
        When there is none, because the module does not run inside a call of its model.
    """
    for name in (CACHE, *LAYER_CACHE_NAMES):
        if isinstance(arguments.get(name), BoundCache):
            return name, arguments[name]
    raise RuntimeError(
        f"{type(module).__name__} of a model with attention sinks was called outside its model's forward; call the "
        "model, or remove_attention_sinks(model) first."
    )


class AnyLayer:
    """It stands for every layer of a cache that is not kept, and forgets what the model writes to it."""

    def __getitem__(self, layer_idx: int) -> AnyLayer:
        return self

    @property
    def indexer_position_ids(self) -> None:
        return None

    @indexer_position_ids.setter
    def indexer_position_ids(self, position_ids: torch.Tensor) -> None: ...


class NothingKept:
    """It stands for the cache of layers with states where no cache is kept: nothing came before, and nothing stays."""

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
