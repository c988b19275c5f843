"""Rotary frequencies for one text length, read from the model's rotary module.

Transformers' rotary modules of type "dynamic" and "longrope" rewrite their own frequencies while they run. That is
wrong for streams of different lengths on one model, so these functions read a module and never run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@dataclass(frozen=True)
class Frequencies:
    """The place where inverse frequencies are found. They are read at each call, since `model.to` may change them.

    Parameters
    ----------
    holder : nn.Module, PlainFrequencies or LongTextFrequencies
        The object that has them.
    inv_freq : str, default "inv_freq"
        The name of its attribute with the inverse frequencies [pairs].
    scaling : str, default "attention_scaling"
        The name of its attribute with the factor that the model puts on cosines and sines.
    """

    holder: Any
    inv_freq: str = "inv_freq"
    scaling: str = "attention_scaling"

    @property
    def facts(self) -> tuple[Any, ...]:
        """The inverse frequencies, as far as they are in memory, and the factor, as plain numbers."""
        inv_freq: torch.Tensor = getattr(self.holder, self.inv_freq)
        return None if inv_freq.is_meta else tuple(inv_freq.tolist()), getattr(self.holder, self.scaling)


@dataclass(frozen=True)
class PlainFrequencies:
    """The frequencies of RoFormer (arXiv 2104.09864, equation 15), which are powers of 10,000.

    Parameters
    ----------
    width : int
        How many dimensions are rotated.
    """

    width: int
    attention_scaling = 1.0

    @property
    def inv_freq(self) -> torch.Tensor:
        """[width / 2] float64 on the CPU."""
        return 10000.0 ** (-torch.arange(0, self.width, 2, dtype=torch.float64, device="cpu") / self.width)


@dataclass(frozen=True)
class LongTextFrequencies:
    """The frequencies that a rotary module uses for a text of one length, where its type depends on the length.

    Parameters
    ----------
    module : nn.Module
        The rotary module of a Transformers model.
    rope_type : str
        A key of Transformers' `ROPE_INIT_FUNCTIONS`.
    length : int
        The length of the text in tokens.
    beyond : int
        The longest text for which the module has other frequencies than these.
    name : str or None
        The kind of layer, as in `config.layer_types`; None when the module has one set of frequencies.
    """

    module: Any
    rope_type: str
    length: int
    beyond: int
    name: str | None

    @property
    def inv_freq(self) -> torch.Tensor:
        """[pairs] on the module's device."""
        return self._computed()[0]

    @property
    def attention_scaling(self) -> float:
        """The factor on cosines and sines."""
        return self._computed()[1]

    @property
    def attribute(self) -> str:
        """The name of the module's frequencies for texts of the trained length."""
        return f"{self.name}_original_inv_freq" if self.name else "original_inv_freq"

    def _computed(self) -> tuple[torch.Tensor, float]:
        """Return inverse frequencies and factor, as Transformers computes them."""
        options = {"layer_type": self.name} if self.name else {}
        device = getattr(self.module, self.attribute).device
        return ROPE_INIT_FUNCTIONS[self.rope_type](self.module.config, device, seq_len=self.length, **options)


def module_frequencies(module: Any, length: int, name: str | None = None) -> Frequencies:
    """Return where the frequencies are found that a rotary module uses for a text of `length` tokens.

    Parameters
    ----------
    module : nn.Module
        A rotary module of a Transformers model, with `inv_freq`, `rope_type` and `attention_scaling`.
    length : int
        The length of the text in tokens. Only the types "dynamic" and "longrope" depend on it.
    name : str, optional
        The kind of layer, as in `config.layer_types`, when the module has frequencies for each kind.
    """
    prefix = f"{name}_" if name else ""
    rope_type = module.rope_type[name] if name else module.rope_type
    scaling = f"{prefix}attention_scaling"
    if "dynamic" not in rope_type and rope_type != "longrope":
        return Frequencies(module, f"{prefix}inv_freq", scaling)
    parameters = module.config.rope_parameters[name] if name else module.config.rope_parameters
    trained_length = (
        parameters["original_max_position_embeddings"] if rope_type == "longrope" else module.original_max_seq_len
    )
    if length <= trained_length:
        return Frequencies(module, f"{prefix}original_inv_freq", scaling)
    return Frequencies(LongTextFrequencies(module, rope_type, length, trained_length, name))
