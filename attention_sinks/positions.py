"""Rotary angles and rotations, without ever running the model's rotary module.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run, which is
wrong for streams of different lengths on one model. Here a module is only read, its frequencies fixed for one length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Tables = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Pairing:
    """How an architecture pairs the dimensions it turns.

    Parameters
    ----------
    spread : callable
        From one angle per pair [..., d/2] to one per dimension [..., d].
    rotate : callable
        Turns states [batch, heads, n, head_dim] by cosines and sines [R, n, d]; dimensions from d on stay as they are.
    """

    spread: Callable[[torch.Tensor], torch.Tensor]
    rotate: Callable[[torch.Tensor, Tables], torch.Tensor]


def _spread_halves(angles: torch.Tensor) -> torch.Tensor:
    return torch.cat((angles, angles), dim=-1)


def _rotate_halves(states: torch.Tensor, tables: Tables) -> torch.Tensor:
    cos, sin = (table.unsqueeze(1) for table in tables)
    width = cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    rotated = torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated
    return rotated.to(states.dtype)


HALVES = Pairing(_spread_halves, _rotate_halves)
"""Pairs (i, i + d/2), as in Llama."""


@dataclass(frozen=True)
class Rotary:
    """The angles of one rotary module, fixed for the life of a cache.

    Parameters
    ----------
    module : nn.Module
        A rotary module of a Transformers model; read at the time of each call, since `model.to` may change its buffers.
    length : int
        Text length whose frequencies are used (sinks + window + 1). Matters for length-dependent types alone.
    pairing : Pairing
        How the architecture pairs dimensions.
    """

    module: nn.Module
    length: int
    pairing: Pairing

    def tables(self, positions: torch.Tensor) -> Tables:
        """Cosines and sines of `positions` [R, n], each [R, n, d] in float32.

        Angles are made in float64 where the device has it: in float32 they are off by 1e-4 after some thousand tokens.
        """
        wide = torch.float32 if positions.device.type == "mps" else torch.float64
        frequencies = self._frequencies()[0].to(positions.device, wide)
        angles = self.pairing.spread(positions[..., None].to(wide) * frequencies)
        return angles.cos().float(), angles.sin().float()

    def embeddings(self, positions: torch.Tensor, dtype: torch.dtype) -> Tables:
        """Tables as the model's own attention expects them: with the module's scaling, in the model's dtype."""
        scaling = self._frequencies()[1]
        cos, sin = self.tables(positions)
        return (cos * scaling).to(dtype), (sin * scaling).to(dtype)

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
