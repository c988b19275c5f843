"""`AttentionSinkKVCache`: the whole state of the streams of one batch."""

from __future__ import annotations

import copy
import os
import weakref
from collections import defaultdict

import torch
from torch import nn

from ..architecture.setup import setup_of
from ..architecture.spec import Position
from ..plan.call import CallPlan
from ..plan.counters import Counters
from ..settings import SinkSettings
from .crop import CroppableCache
from .layers import cache_layers
from .sink_layer import SinkLayer
from .snapshot import restore_snapshot, settings_of, take_snapshot
from .states_layer import StatesLayer
from .storage import read_file, write_file
from .stream_state import StreamState


class AttentionSinkKVCache(CroppableCache):
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
    ...     outputs = model(ids, cache=cache, use_cache=True)
    """

    def __init__(
        self,
        model: nn.Module,
        attention_sink_size: int | None = None,
        attention_sink_window_size: int | None = None,
    ) -> None:
        setup = setup_of(model)
        defaults = setup.settings
        settings = SinkSettings(
            defaults.sink_size if attention_sink_size is None else attention_sink_size,
            defaults.window_size if attention_sink_window_size is None else attention_sink_window_size,
            defaults.prefill,
        )
        self.settings = setup.fit(settings)
        setup.warn_beyond_training(self.settings)
        reaches = setup.layer_table(self.settings).reaches
        self.streams = StreamState(min(reach.visible_size for reach in reaches if reach is not None))
        self._model = weakref.ref(setup.model)
        super().__init__(layers=cache_layers(setup, self.settings, self.streams))

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
        """Bytes of all stored tensors; constant from the first call on, but for the undo log while recording."""
        stored = (tensor for layer in self.layers for tensor in layer.tensors)
        counters = self.streams.static.tensors if self.streams.static else ()
        return sum(tensor.nbytes for tensors in (stored, self._undo_tensors, counters) for tensor in tensors)

    @property
    def _undo_tensors(self) -> list[torch.Tensor]:
        return [tensor for layer in self._sink_layers for tensor in layer.log.tensors]

    @property
    def is_initialized(self) -> bool:
        return self.streams.static is not None

    @property
    def is_compileable(self) -> bool:
        """Whether single-token steps can be compiled: `generate` asks, and compiles them on a GPU."""
        return not any(isinstance(layer, StatesLayer) for layer in self.layers) and not self.is_recording

    @property
    def can_step_in_graph(self) -> bool:
        """Whether the next step can be: the first call of a stream, which makes the buffers, is not compiled."""
        return self.is_compileable and self.streams.static is not None

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def batch_size(self) -> int:
        return len(self.streams.seen) or -1

    def get_seq_length(self, layer_idx: int = 0, *args, **kwargs) -> int:
        """Input columns seen since the last reset, padding included; `generate` slices its inputs by it."""
        return self.streams.columns

    def get_query_offset(self, layer_idx: int = 0, *args, **kwargs) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0, *args, **kwargs) -> tuple[int, int]:
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
        self.streams.select(indices.tolist())
        for layer in self.layers:
            layer.batch_select_indices(indices)

    # ---- saving

    def save(self, path: str | os.PathLike) -> None:
        """Write the cache to one safetensors file, so that `load` goes on bit for bit where it stands.

        The file holds keys, values, counters and S and W. It replaces what is at `path` once it is complete. What was
        recorded for `crop` is not saved; the one token that can always be taken back is.
        """
        self._check_own_layers("save")
        write_file(path, *take_snapshot(self, self._owner()))

    @classmethod
    def load(cls, path: str | os.PathLike, model: nn.Module) -> AttentionSinkKVCache:
        """The cache saved to `path`, for `model`: the one it was made for, or the same checkpoint loaded anew.

        A model is known by facts of its config (type, sizes, rotary parameters) and samples of all its weights, their
        dtype included. S and W are those of the saved cache.

        Raises
        ------
        OSError
            When there is no such file.
        ValueError
            When the file is truncated, altered or something else, or its cache is of another model or prefill mode.
        """
        tensors, state = read_file(path)
        try:
            cache = cls(model, *settings_of(state, model))
            restore_snapshot(cache, tensors, state)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        return cache

    def _owner(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise ValueError("the model this cache was made for is gone; keep the model as long as its caches.")
        return model

    # ---- the steps of a call

    def begin(self) -> None:
        """A call begins: remember what it may change in place."""
        for layer in self.layers:
            if isinstance(layer, StatesLayer):
                layer.remember()

    def rebase(self, shift: tuple[int, ...], positions: tuple[Position, ...]) -> None:
        """Turn every recent key back by what its row's base moves; takes effect with `commit`."""
        moved = torch.tensor(shift if len(set(shift)) > 1 else shift[:1])[:, None]
        with torch.no_grad():
            for layer, position in zip(self.layers, positions, strict=True):
                if isinstance(layer, SinkLayer) and layer.rotated:
                    layer.rebase(position, moved)

    def rotate_sinks(self, call: CallPlan) -> None:
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

    def commit(self, rows: Counters, columns: int, real: torch.Tensor | None, device: torch.device) -> None:
        """Keep what a call of `columns` columns brought, `real` of them tokens; it leaves the streams at `rows`."""
        with torch.no_grad():
            for layer in self.layers:
                layer.commit()
        self.streams.advance(rows, columns, real, self.is_recording, device)

    def discard(self, columns: int) -> None:
        """A call of `columns` columns broke off: the streams are as they were before it."""
        with torch.no_grad():
            for layer in self.layers:
                layer.discard()
        if columns == 1 and not self.is_recording:
            self.streams.lose_evicted()

    def serves(self, model: nn.Module) -> bool:
        """Whether this cache was made for `model` (the base model itself)."""
        return self._model() is model

    def __deepcopy__(self, memo: dict) -> AttentionSinkKVCache:
        """A fork: both go on from here, each its own way. Copied along with its model it serves the model's copy."""
        fork = memo[id(self)] = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            fork.__dict__[name] = value if name == "_model" else copy.deepcopy(value, memo)
        model = self._model()
        if id(model) in memo:
            fork._model = weakref.ref(memo[id(model)])
        return fork

    def __reduce__(self):
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: it belongs to a model. Use cache.save(path) and "
            f"{type(self).__name__}.load(path, model), or copy.deepcopy(cache)."
        )
