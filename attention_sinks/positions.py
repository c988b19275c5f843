"""Rotary angles and rotations, without ever changing the model's rotary module.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run, which is
wrong for streams of different lengths on one model. Here the module's own forward runs on a stand-in whose frequencies
are fixed for one text length, so layout (halves, interleaved, partial) stays the module's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Tables = tuple[torch.Tensor, torch.Tensor]


def rotate_halves(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Turn pairs (i, i + d/2) of the first d dimensions; `states` [batch, heads, n, head_dim], tables [R, n, d]."""
    cos, sin = (table.unsqueeze(1) for table in tables)
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    rotated = torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    return rotated.to(states.dtype)


@dataclass(frozen=True)
class Rotary:
    """The angles of one rotary module, fixed for the life of a cache.

    Parameters
    ----------
    module : nn.Module
        A rotary module of a Transformers model; only read, at the time of each call.
    length : int
        Text length whose frequencies are used (sinks + window + 1). Matters for length-dependent types alone.
    rotate : callable, default `rotate_halves`
        Applies tables to states the way the architecture pairs dimensions.
    """

    module: nn.Module
    length: int
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor] = rotate_halves

    def tables(self, positions: torch.Tensor) -> Tables:
        """Cosines and sines of `positions` [R, n] in float32, [R, n, d], on the device of `positions`."""
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        return type(self.module).forward(_Frozen(self.module, self._frequencies()[0]), like, positions)

    def embeddings(self, tables: Tables, dtype: torch.dtype) -> Tables:
        """Tables as the model's attention expects them: with the module's scaling, in the model's dtype."""
        scaling = self._frequencies()[1]
        return tuple((table * scaling).to(dtype) for table in tables)

    def _frequencies(self) -> tuple[torch.Tensor, float]:
        """Inverse frequencies and attention scaling plain Transformers uses for a text of `length` tokens."""
        module, rope_type = self.module, self.module.rope_type
        if "dynamic" in rope_type:
            trained_length = module.original_max_seq_len
        elif rope_type == "longrope":
            trained_length = module.config.rope_parameters["original_max_position_embeddings"]
        else:
            return module.inv_freq, module.attention_scaling
        if self.length <= trained_length:
            return module.original_inv_freq, module.attention_scaling
        return ROPE_INIT_FUNCTIONS[rope_type](module.config, module.inv_freq.device, seq_len=self.length)


class _Frozen:
    """What a rotary module's forward reads of itself: given frequencies, no scaling, nothing to update."""

    rope_type = "default"
    attention_scaling = 1.0

    def __init__(self, module: nn.Module, inv_freq: torch.Tensor) -> None:
        self._module, self.inv_freq = module, inv_freq

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
