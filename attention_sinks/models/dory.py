"""Dory runs its middle layers in several loops, and weighs its queries in each dimension after they are rotated.

Each loop has keys and values of its own. Transformers caches those of the first loop in the layers' own places and
appends layers for the loops after it, one loop behind the other.

Scores are w R(c) q . R(p) k, which depends on the places c and p and not on their distance alone. As in HunYuan V1, a
query is rotated and weighed at its place and then moved by what separates that from where its keys stand in their
buffers. Sliding layers have places as well: those of a text as long as what layers with sinks see, or as their own
window where that is longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..architecture.layer_kinds import LayerKind, layer_kinds
from ..architecture.spec import Architecture
from ..cache.cache import AttentionSinkKVCache
from ..plan.layer import LayerPlan, Plan
from ..plan.table import LayerTable
from ..positions.schemes import Position, Rope
from ..streaming.attention import attend_cached
from ..streaming.bound_cache import BoundCache
from .projections import project

T = TypeVar("T")


def _with_loops(config: PreTrainedConfig, layers: tuple[T, ...]) -> tuple[T, ...]:
    """Return `layers` of the model, and behind them its middle ones again for each loop after the first."""
    first: int = config.n_input_layers
    loops: int = config.n_recurrent_loops
    return layers + layers[first : first + config.n_recurrent_layers] * (loops - 1)


@dataclass(frozen=True)
class LoopedRope(Rope):
    """Rotary positions, for the layers of every loop."""

    def of_layers(self, base_model: PreTrainedModel, length: int) -> tuple[Position, ...]:
        return _with_loops(base_model.config, super().of_layers(base_model, length))


class DoryCache(BoundCache):
    """A bound cache that shows the layers of all loops, so that the base model appends none to it."""

    def __init__(
        self, cache: AttentionSinkKVCache | None, table: LayerTable, plans: Sequence[Plan], implementation: str
    ) -> None:
        super().__init__(cache, table, plans, implementation)
        self.layers = list(table.reaches)


def _attention(
    module: Any,
    hidden_states: torch.Tensor,
    cache: BoundCache,
    layer: LayerPlan,
    cache_offset: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query, key, value = (states.transpose(1, 2) for states in project(module, hidden_states))
    weight = (module.sqk * module.sqk_scale).view(-1, 1, module.head_dim)
    _check_loops(module.config, len(cache.table.reaches))
    place = torch.maximum(layer.plan.cache_position, cache.plans[0].cache_position.to(hidden_states.device))
    assert layer.rotary is not None  # all layers rotate
    query = layer.rotate(module.q_norm(query), layer.rotary.embeddings(place, query.dtype)) * weight.square()
    query = layer.rotate(query, layer.rotary.tables(layer.plan.model_position - place, query.dtype))
    key = layer.rotate(module.k_norm(key), layer.position_embeddings)
    key, value = cache.update(key, value, module.layer_idx + cache_offset)
    dropout = module.attention_dropout if module.training else 0.0
    output, weights = attend_cached(module, query, key, value, layer, module.scaling, dropout)
    gate = torch.sigmoid(module.gate_proj(hidden_states) * (module.s_gate * module.s_gate_scale).square())
    return module.o_proj(module.attn_sub_norm(output.flatten(2) * gate)), weights


def _check_loops(config: PreTrainedConfig, layers: int) -> None:
    """Raise ValueError when the model runs other loops than its caches have layers for."""
    if layers != config.num_hidden_layers + config.n_recurrent_layers * (config.n_recurrent_loops - 1):
        raise ValueError(
            f"config.n_recurrent_loops={config.n_recurrent_loops} is not what it was when attention sinks were "
            "injected; call inject_attention_sinks(model) again and use a new cache."
        )


def _kinds(config: PreTrainedConfig) -> tuple[LayerKind, ...]:
    return _with_loops(config, layer_kinds(config))


def _unsupported_reason(config: PreTrainedConfig) -> str | None:
    if config.recurrent_kv_cache_mode == "last_loop":
        return (
            "with recurrent_kv_cache_mode='last_loop' lets its loops see other keys for a text in one call than for "
            "the same text token by token; set config.recurrent_kv_cache_mode='per_loop'."
        )
    return None


ARCHITECTURE = Architecture(
    "DoryAttention",
    LoopedRope(),
    forward=_attention,
    bound_cache=DoryCache,
    kinds=_kinds,
    unsupported_reason=_unsupported_reason,
    notes="middle layers run in loops, each with keys of its own",
)
