"""Rotary frequencies, read from where a model keeps them and fixed for one text length.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run, which is
wrong for streams of different lengths on one model. Here a module is only read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Frequencies = Callable[[], tuple[torch.Tensor, float]]
"""Gives inverse frequencies [pairs], and the factor the model puts on cosines and sines."""


def module_frequencies(module: nn.Module, length: int) -> tuple[torch.Tensor, float]:
    """What the rotary module of a Transformers model uses for a text of `length` tokens.

    Parameters
    ----------
    module : nn.Module
        Has `inv_freq`, `rope_type` and `attention_scaling`.
    length : int
        Matters for length-dependent types alone.
    """
    rope_type = module.rope_type
    if "dynamic" in rope_type:
        trained_length = module.original_max_seq_len
    elif rope_type == "longrope":
        trained_length = module.config.rope_parameters["original_max_position_embeddings"]
    else:
        return module.inv_freq, module.attention_scaling
    if length <= trained_length:
        return module.original_inv_freq, module.attention_scaling
    return ROPE_INIT_FUNCTIONS[rope_type](module.config, module.inv_freq.device, seq_len=length)


def plain_frequencies(width: int) -> tuple[torch.Tensor, float]:
    """The frequencies of RoFormer (arXiv 2104.09864, equation 15) for `width` turned dimensions, base 10,000."""
    return 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), 1.0
