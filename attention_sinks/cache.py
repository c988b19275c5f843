"""`AttentionSinkKVCache`: the whole state of the streams of one batch."""

from __future__ import annotations

import weakref
from collections import defaultdict

import torch
from torch import nn
from transformers.cache_utils import Cache

from .architecture import Position
from .call import Call
from .injection import Injection, injection_of
from .layer import SinkLayer
from .positions import Rotary
from .rows import Rows, Streams
from .settings import SinkSettings
from .states_layer import EmptyLayer, SinkAndStatesLayer, StatesLayer


class AttentionSinkKVCache(Cache):
    """Sinks and window of every layer, for every row of a batch; constant in memory however long the streams.

    Every row is a stream of its own. A query sees the first S tokens of its stream and the W most recent ones, at
    positions counted within the cache (StreamingLLM, arXiv 2309.17453, section 3.2).

    Parameters
    ----------
    model : PreTrainedModel
        A model with attention sinks injected; the cache serves this model only.
    attention_sink_size : int, optional
        S. Default: the model's setting.
    attention_sink_window_size : int, optional
        W. Default: the model's setting.

    Raises
    ------
    ValueError
        When the model has no attention sinks injected, or a size is out of range.
    TypeError
        When a size is not an int.

    Examples
    --------
    >>> cache = AttentionSinkKVCache(model)
    >>> for ids in pieces_of_an_endless_text:
    ...     outputs = model(ids, past_key_values=cache, use_cache=True)
    """

    def __init__(
        self,
        model: nn.Module,
        attention_sink_size: int | None = None,
        attention_sink_window_size: int | None = None,
    ) -> None:
        injection = injection_of(model)
        defaults = injection.settings
        settings = SinkSettings(
            defaults.sink_size if attention_sink_size is None else attention_sink_size,
            defaults.window_size if attention_sink_window_size is None else attention_sink_window_size,
            defaults.prefill,
        )
        self.settings = injection.fit(settings)
        injection.warn_beyond_training(self.settings)
        self.streams = Streams()
        self._model = weakref.ref(injection.model)
        super().__init__(layers=_layers(injection, self.settings, self.streams))

    # ---- what it holds

    @property
    def tokens_seen(self) -> torch.Tensor:
        """[batch] int64, real tokens each row has fed since the last reset."""
        return torch.tensor(self.streams.seen, dtype=torch.long)

    @property
    def tokens_cached(self) -> torch.Tensor:
        """[batch] int64, tokens the next query of each row sees besides itself; never above S+W."""
        return self.tokens_seen.clamp(max=self.settings.visible_size - 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors; constant from the first call on."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.tensors)

    @property
    def is_initialized(self) -> bool:
        return self.streams.rows is not None

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def batch_size(self) -> int:
        return len(self.streams.seen) or -1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Input columns seen since the last reset, padding included; `generate` slices its inputs by it."""
        return self.streams.columns

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def __repr__(self) -> str:
        s, w, prefill = self.settings.sink_size, self.settings.window_size, self.settings.prefill
        return (
            f"{type(self).__name__}(attention_sink_size={s}, attention_sink_window_size={w}, "
            f"attention_sink_prefill={prefill!r}, layers={len(self.layers)}, tokens_seen={self.tokens_seen.tolist()}, "
            f"tokens_cached={self.tokens_cached.tolist()}, nbytes={self.nbytes})"
        )

    # ---- what changes it

    def reset(self) -> None:
        """Forget all streams; the next call may bring another batch size."""
        self.streams.clear()
        for layer in self.layers:
            layer.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was; beams reorder whole streams. `beam_idx` [batch] int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row, as for beams or several returned sequences."""
        self.batch_select_indices(torch.arange(len(self.streams.seen)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` [new batch] int64 or bool [batch], in that order."""
        if self.streams.rows is None:
            return
        indices = torch.arange(len(self.streams.seen), device=indices.device)[indices]
        self.streams.rows = self.streams.rows.select(indices.tolist())
        for layer in self.layers:
            layer.batch_select_indices(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Not available: what a full ring has overwritten cannot be brought back."""
        raise NotImplementedError(
            f"crop({tokens_to_remove}) is not supported by {type(self).__name__}: tokens that left the window are "
            "gone. Use copy.deepcopy(cache) before the tokens you may want to take back."
        )

    def rebase(self, shift: tuple[int, ...], positions: tuple[Position, ...]) -> None:
        """Turn every recent key back by what its row's base moves; takes effect with `commit`."""
        moved = torch.tensor(shift if len(set(shift)) > 1 else shift[:1])[:, None]
        with torch.no_grad():
            for layer, position in zip(self.layers, positions, strict=True):
                if isinstance(layer, SinkLayer) and layer.rotated:
                    layer.rebase(position, moved)

    def turn_sinks(self, call: Call) -> None:
        """Before a single step: bring the sinks to where the query must see them, those of like layers together."""
        alike = defaultdict(list)
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, SinkLayer) or not layer.rotated:
                continue
            layer_call = call.at(index, layer.sinks)
            if layer_call.turn is not None:
                alike[id(layer_call), layer.sinks.shape].append((layer_call, layer))
        for members in alike.values():
            layer_call, layers = members[0][0], [layer for _, layer in members]
            turned = layer_call.rotate(torch.cat([layer.sinks for layer in layers], dim=1), layer_call.turn)
            for layer, sinks in zip(layers, turned.chunk(len(layers), dim=1), strict=True):
                layer.turned(sinks)

    def commit(self, rows: Rows, columns: int) -> None:
        """A call of `columns` columns is done and leaves the streams at `rows`: keep what its layers hold."""
        with torch.no_grad():
            for layer in self.layers:
                layer.commit()
        self.streams.rows, self.streams.columns = rows, self.streams.columns + columns

    def discard(self) -> None:
        """A call broke off: the streams are as they were before it."""
        for layer in self.layers:
            layer.discard()

    def serves(self, model: nn.Module) -> bool:
        """Whether this cache was made for `model` (the base model itself)."""
        return self._model() is model


def _layers(injection: Injection, settings: SinkSettings, streams: Streams) -> list:
    """A layer of ours for each that has keys and values; Transformers' own for states that are not per token."""
    layers = []
    places = zip(injection.kinds, injection.reaches(settings), injection.positions(settings), strict=True)
    for kind, reach, position in places:
        turned = isinstance(position, Rotary) and position.turned
        rotated = injection.architecture.rotated if turned else None
        if not kind.stores:
            layers.append(StatesLayer(kind.states) if kind.states else EmptyLayer())
        elif kind.states:
            layers.append(SinkAndStatesLayer(reach, streams, rotated, kind.states))
        else:
            layers.append(SinkLayer(reach, streams, rotated))
    return layers
