"""Rotary frequencies for one text length, read from the model's rotary module.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run. That is
wrong for streams of different lengths on one model, so these functions read a module and never run it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Frequencies = Callable[[], tuple[torch.Tensor, float]]
"""A function that returns the inverse frequencies [pairs] and the model's factor on cosines and sines."""


def module_frequencies(module: Any, length: int, name: str | None = None) -> tuple[torch.Tensor, float]:
    """Return the frequencies that the rotary module of a Transformers model uses for a text of `length` tokens.

    Parameters
    ----------
    module : nn.Module
        A module with `inv_freq`, `rope_type` and `attention_scaling`.
    length : int
        The length of the text in tokens. Only the types "dynamic" and "longrope" depend on it.
    name : str, optional
        The kind of layer, as in `config.layer_types`, when the module has frequencies for each kind.

    Returns
    -------
    tuple of torch.Tensor and float
        Inverse frequencies [pairs] and the factor on cosines and sines.
    """
    prefix = f"{name}_" if name else ""
    rope_type = module.rope_type[name] if name else module.rope_type
    frequencies, scaling = getattr(module, f"{prefix}inv_freq"), getattr(module, f"{prefix}attention_scaling")
    if "dynamic" not in rope_type and rope_type != "longrope":
        return frequencies, scaling
    parameters = module.config.rope_parameters[name] if name else module.config.rope_parameters
    trained_length = (
        parameters["original_max_position_embeddings"] if rope_type == "longrope" else module.original_max_seq_len
    )
    if length <= trained_length:
        return getattr(module, f"{prefix}original_inv_freq"), scaling
    options = {"layer_type": name} if name else {}
    return ROPE_INIT_FUNCTIONS[rope_type](module.config, frequencies.device, seq_len=length, **options)


def plain_frequencies(width: int) -> tuple[torch.Tensor, float]:
    """Return the frequencies of RoFormer (arXiv 2104.09864, equation 15) for `width` rotated dimensions.

    Theta is 10,000. The second value, the factor on cosines and sines, is 1.
    """
    return 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width), 1.0
