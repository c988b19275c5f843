"""Rotary frequencies, read from where a model keeps them and fixed for one text length.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run, which is
wrong for streams of different lengths on one model. Here a module is only read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Frequencies = Callable[[], tuple[torch.Tensor, float]]
"""Gives inverse frequencies [pairs], and the factor the model puts on cosines and sines."""


def frequencies_of(module: nn.Module, length: int, name: str | None = None) -> Frequencies:
    """What the rotary module of a Transformers model uses for a text of `length` tokens, read anew at each call.

    Parameters
    ----------
    module : nn.Module
        Has `inv_freq`, `rope_type` and `attention_scaling`.
    length : int
        Matters for length-dependent types alone.
    name : str, optional
        The kind of layer, as in `config.layer_types`, where the module has frequencies for each.
    """
    prefix = f"{name}_" if name else ""
    rope_type = module.rope_type[name] if name else module.rope_type
    scaling = f"{prefix}attention_scaling"
    if "dynamic" not in rope_type and rope_type != "longrope":
        return partial(attrgetter(f"{prefix}inv_freq", scaling), module)
    parameters = module.config.rope_parameters[name] if name else module.config.rope_parameters
    trained_length = (
        parameters["original_max_position_embeddings"] if rope_type == "longrope" else module.original_max_seq_len
    )
    if length <= trained_length:
        return partial(attrgetter(f"{prefix}original_inv_freq", scaling), module)
    return partial(_frequencies_beyond_training, module, length, rope_type, name)


def _frequencies_beyond_training(module: nn.Module, length: int, rope_type: str, name: str | None):
    device = getattr(module, f"{name}_inv_freq" if name else "inv_freq").device
    options = {"layer_type": name} if name else {}
    return ROPE_INIT_FUNCTIONS[rope_type](module.config, device, seq_len=length, **options)


def plain_frequencies(width: int) -> tuple[torch.Tensor, float]:
    """The frequencies of RoFormer (arXiv 2104.09864, equation 15) for `width` turned dimensions, base 10,000."""
    return 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), 1.0
