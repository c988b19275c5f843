"""The kinds of layers of a model. Its config says which attend, how far they see natively and what they keep."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

LINEAR = ("linear_attention", "conv")
HYBRID = ("hybrid", "hybrid_sliding")
INDEXED = ("indexed_attention", "deepseek_sparse_attention")
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", *INDEXED, *HYBRID)
SLIDING = ("sliding_attention", "hybrid_sliding")


@dataclass(frozen=True)
class LayerKind:
    """What is particular to one layer.

    Parameters
    ----------
    attends : bool
        Whether it has attention at all.
    stores : bool
        Whether it has keys and values of its own, and does not use those of an earlier layer.
    window : int or None, default None
        How many tokens it sees natively, including the current one; None: all.
    chunk : bool, default False
        Whether `window` counts from borders that are fixed in the stream (chunked attention).
    states : int, default 0
        How many convolution and recurrent states Transformers keeps for it.
    indexed : bool, default False
        Whether an indexer selects its keys.
    no_token : int, default 0
        What a state of token ids holds before the first token.
    """

    attends: bool
    stores: bool
    window: int | None = None
    chunk: bool = False
    states: int = 0
    indexed: bool = False
    no_token: int = 0


def layer_kinds(config: PreTrainedConfig) -> tuple[LayerKind, ...]:
    """Return the kind of every layer of a decoder with `config`, by layer index."""
    count = config.num_hidden_layers
    names = (getattr(config, "layer_types", None) or [_only_name(config)] * count)[:count]
    return tuple(_kind(config, index, name, index < count - _sharing(config)) for index, name in enumerate(names))


def _only_name(config: PreTrainedConfig) -> str:
    """Return what Transformers calls the layers of a config that does not name them."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) is not None else "full_attention"


def _sharing(config: PreTrainedConfig) -> int:
    """Return how many of the last layers use the keys and values of earlier ones."""
    return getattr(config, "num_kv_shared_layers", None) or 0


def _kind(config: PreTrainedConfig, index: int, name: str, stores: bool) -> LayerKind:
    attends, chunk = name in ATTENTION, name == "chunked_attention"
    config = config.per_layer_config[index] if getattr(config, "per_layer_config", None) else config
    window = config.attention_chunk_size if chunk else config.sliding_window if name in SLIDING else None
    states = getattr(config, "number_of_conv_states", 1) if name in (*LINEAR, *HYBRID) else 0
    return LayerKind(attends, attends and stores, window, chunk, states, name in INDEXED)
