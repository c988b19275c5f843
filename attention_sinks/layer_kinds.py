"""What kinds of layers a model has, read from its config: which attend, how far they see natively, what else they keep."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

LINEAR = ("linear_attention", "conv")
HYBRID = ("hybrid", "hybrid_sliding")
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", *HYBRID)
SLIDING = ("sliding_attention", "hybrid_sliding")


@dataclass(frozen=True)
class LayerKind:
    """One layer.

    Attributes
    ----------
    attends : bool
        Whether it has attention at all.
    stores : bool
        Whether it has keys and values of its own, and not those of an earlier layer.
    window : int or None
        How many tokens it sees natively, the current one included; None: all.
    chunk : bool
        Whether `window` counts from borders fixed in the stream (chunked attention).
    states : int
        Convolution and recurrent states that Transformers keeps for it; 0 for a layer without any.
    """

    attends: bool
    stores: bool
    window: int | None = None
    chunk: bool = False
    states: int = 0


def layer_kinds(config: PreTrainedConfig) -> tuple[LayerKind, ...]:
    """The kind of every layer of a decoder with `config`, by layer index."""
    types, facts = get_layer_types_and_kwargs(config)
    named = getattr(config, "layer_types", None) or types
    windows = [fact.get("sliding_window") for fact in facts]
    sliding = next((window for window in windows if window is not None), getattr(config, "sliding_window", None))
    return tuple(
        _kind(kind, name, window or sliding, fact)
        for kind, name, window, fact in zip(types, named, windows, facts, strict=True)
    )


def _kind(kind: str, name: str, window: int | None, fact: dict) -> LayerKind:
    """`kind` is what Transformers' cache calls the layer, `name` what the config calls it."""
    attends = kind not in LINEAR and name not in ("moe", "mlp")
    return LayerKind(
        attends=attends,
        stores=attends and kind != "dummy",
        window=window if attends and name in (*SLIDING, "chunked_attention") or kind in SLIDING else None,
        chunk="chunked_attention" in (kind, name),
        states=fact.get("number_of_states", 1) if kind in (*LINEAR, *HYBRID) else 0,
    )
