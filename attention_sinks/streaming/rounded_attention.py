"""Attention of a compiled step over keys and values as a cache keeps them, on CPUs: none of them is unpacked in memory.

A graph of inductor writes unpacked keys and values and reads them again, which is more bytes than rounding has saved.
`rounded_attention.cpp` unpacks them where they are needed. It is built when the first such step is traced, with what
inductor builds its own code with, and where that cannot be done, steps unpack first.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..cache.precision import group_of
from ..plan.layer import LayerPlan, Rounded

SOURCE = Path(__file__).with_suffix(".cpp")

LANES = 8
"""Heads are a multiple of so many numbers wide."""

FLAGS = ("-ffp-contract=fast",)
"""Besides those of inductor: products and sums may be rounded once."""

FORMS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 17}
"""What `unpack_of` in the source calls the dtypes."""

logger = logging.get_logger(__name__)


class Call(ctypes.Structure):
    """What the source calls so."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "sinks", "keys", "values", "visible", "output")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "queries", "width", "slots", "sink_size")),
        *((name, ctypes.c_int64) for name in ("value_width", "visible_stride", "key_bytes", "value_bytes")),
        *((name, ctypes.c_int64) for name in ("key_form", "value_form", "threads")),
        ("scaling", ctypes.c_double),
    ]


@cache
def _built() -> ctypes.CDLL | None:
    """Return the compiled source; None where it cannot be compiled."""
    if sys.platform == "win32":  # its compiler has no vectors
        return None
    try:
        from torch._inductor.codecache import CppCodeCache

        library: ctypes.CDLL = CppCodeCache.load(SOURCE.read_text(encoding="utf-8"), extra_flags=FLAGS)
        return library
    except Exception as error:  # whatever the compiler or a release of PyTorch makes of it
        logger.warning(f"Compiled steps unpack a cache that rounds, which takes longer: {error}")
        return None


def is_built() -> bool:
    """Return whether the source is compiled. The first question compiles it, which takes some seconds."""
    return _built() is not None


torch.compiler.assume_constant_result(is_built)  # asked while a step is traced, not when it runs


def rounded_of(layer: LayerPlan, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Rounded | None:
    """Return what a cache keeps of `key` and `value`, where `attend_rounded` can attend to it in place of these."""
    for rounded in layer.rounded:  # there is one at most
        keys, values = rounded.unpacked
        if (
            key is keys
            and value is values
            and query.device.type == "cpu"
            and query.dtype == key.dtype == value.dtype == torch.float32
            and key.shape[-1] % LANES == value.shape[-1] % LANES == 0
            and is_built()
        ):
            return rounded
    return None


def attend_rounded(query: torch.Tensor, rounded: Rounded, visible: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attend to what a cache keeps.

    Parameters
    ----------
    query : torch.Tensor
        [batch, num_attention_heads, 1, head_dim], float32.
    rounded : Rounded
        Keys and values.
    visible : torch.Tensor
        [R, 1, 1, slots] bool, R = 1 or batch: True for a slot that the query of the row sees.
    scaling : float
        The factor on scores.

    Returns
    -------
    torch.Tensor
        [batch, 1, num_attention_heads, value head_dim].
    """
    batch, heads, _, width = query.shape
    queries, value_width = query.reshape(batch, rounded.keys.shape[1], -1, width), rounded.unpacked[1].shape[-1]
    sinks = rounded.sinks.contiguous()  # a graph would give it the strides, and the memory, of all keys
    tensors = queries, rounded.keys, rounded.values, sinks, visible.flatten(1)
    output: torch.Tensor = torch.ops.attention_sinks.attend_rounded(*tensors, scaling, value_width)
    return output.reshape(batch, 1, heads, value_width)


# ---- the operator, which a graph calls without looking into it

OPERATORS = torch.library.Library("attention_sinks", "FRAGMENT")
OPERATORS.define(
    "attend_rounded(Tensor query, Tensor keys, Tensor values, Tensor sinks, Tensor visible, float scaling, "
    "int value_width) -> Tensor"
)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
    value_width: int,
) -> torch.Tensor:
    library = _built()
    assert library is not None  # `rounded_of` has asked
    output, (*_, width) = _like_output(query, keys, values, sinks, visible, scaling, value_width), query.shape
    tensors = [tensor.contiguous() for tensor in (query, sinks, keys, values, visible)]
    call = Call(
        *(tensor.data_ptr() for tensor in (*tensors, output)),
        *query.shape,
        *(keys.shape[2], sinks.shape[2], value_width, 0 if visible.shape[0] == 1 else keys.shape[2]),
        *(buffer.shape[3] * buffer.itemsize for buffer in (keys, values)),
        *(_form_of(keys, width), _form_of(values, value_width), torch.get_num_threads(), scaling),
    )
    library.attend_rounded(ctypes.byref(call))
    return output


def _like_output(query: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return torch.empty(*query.shape[:3], arguments[-1], dtype=torch.float32, device=query.device)


OPERATORS.impl("attend_rounded", _attend, "CPU")
torch.library.register_fake("attention_sinks::attend_rounded", _like_output)


def _form_of(buffer: torch.Tensor, width: int) -> int:
    """Return what `unpack_of` in the source calls the form of a buffer, in which a head has `width` numbers."""
    if buffer.dtype != torch.uint8:
        return FORMS[buffer.dtype]
    group = group_of(width)
    bits = 8 if buffer.shape[-1] > width else 4
    return 100 * bits + group
