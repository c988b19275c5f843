"""`AttentionSinkKVCache`: the whole state of the streams of one batch."""

from __future__ import annotations

import copy
import operator
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..architecture.modules import base_model_of
from ..architecture.setup import Setup, setup_of
from ..plan.table import LayerTable
from ..positions.rotary import Source
from ..settings import CacheDtype, SinkSettings, cache_dtype_named
from .files import naming
from .fingerprint import fingerprint
from .layer import Layer, refuse_plain_model
from .layer_stack import LayerStack
from .layers import cache_layers
from .rows import Part, check_layers_fit, fill, replace_rows, row_indices
from .sink_layer import SinkLayer
from .snapshot import fitting_state, restore_snapshot, take_snapshot
from .storage import read_file, write_file
from .stream_state import StreamState


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
    attention_sink_cache_dtype : torch.dtype or str, optional
        What keys and values are rounded to when they enter, each number once: torch.bfloat16, torch.float16, "int8" (8
        bits a number) or "int8-int4" (8 bits for keys, 4 for values); "auto" keeps them as the model made them.
        Default: the model's setting.

    Raises
    ------
    ValueError
        When the model has no attention sinks injected, a size is out of range, or the dtype is unknown.
    TypeError
        When a size is not an int.
    NotImplementedError
        When the model or its device cannot have a cache of this dtype.

    Examples
    --------
    >>> cache = AttentionSinkKVCache(model)
    >>> for ids in pieces_of_an_endless_text:
    ...     outputs = model(ids, cache=cache, use_cache=True)
    """

    layers: list[Layer]  # type: ignore[assignment]  # Transformers' annotation names its own classes of layers alone

    def __init__(
        self,
        model: nn.Module,
        attention_sink_size: int | None = None,
        attention_sink_window_size: int | None = None,
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
    ) -> None:
        setup = setup_of(model)
        setup.notice_changes()
        defaults, dtype = setup.settings, attention_sink_cache_dtype
        settings = SinkSettings(
            defaults.sink_size if attention_sink_size is None else attention_sink_size,
            defaults.window_size if attention_sink_window_size is None else attention_sink_window_size,
            defaults.prefill,
            defaults.cache_dtype if dtype is None else cache_dtype_named(dtype),
        )
        self.settings = setup.fit(settings)
        setup.warn_beyond_training(self.settings)
        self._hold, table = setup.hold_table(self.settings), setup.layer_table(self.settings)
        self._model = weakref.ref(setup.model)
        self._begin(setup, table)

    def _begin(self, setup: Setup, table: LayerTable) -> None:
        """Make empty layers for the model of `setup`; `table` says what they see."""
        self.facts = table.facts  # the layers are made for what they see, the keys rotated by the positions
        self.streams = StreamState(min(reach.visible_size for reach in table.reaches if reach is not None))
        layers = cache_layers(setup, table, self.streams, self.settings.cache_dtype)
        self.layer_stack = LayerStack(layers, self.streams, table.groups)
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]  # as above

    # ---- what it holds

    @property
    def tokens_seen(self) -> torch.Tensor:
        """[batch] int64, real tokens each row has fed since the last reset."""
        return torch.tensor(self.streams.seen, dtype=torch.long, device="cpu")

    @property
    def tokens_cached(self) -> torch.Tensor:
        """[batch] int64, tokens the next query of each row sees besides itself; never above S+W."""
        return self.tokens_seen.clamp(max=self.settings.visible_size - 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors; constant from the first call on, except for the undo log while recording."""
        return sum(tensor.nbytes for tensor in self.layer_stack.tensors)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of stored keys, which the first call of the streams decides where it is not chosen; None before.

        Whole numbers of 8 and 4 bits lie in torch.uint8.
        """
        return next((layer.stored_dtype for layer in self.layers if isinstance(layer, SinkLayer)), None)

    @property
    def is_initialized(self) -> bool:
        return self.streams.device is not None

    @property
    def is_compileable(self) -> bool:
        """Whether steps can be compiled: `generate` asks, and compiles them on a GPU."""
        return not self.layer_stack.keeps_states and not self.layer_stack.is_recording

    @property
    def can_step_in_graph(self) -> bool:
        """Whether the next step can be compiled. The first call of a stream, which makes the buffers, cannot."""
        free = not self.streams.in_use and self.streams.unfinished is None
        return free and self.is_compileable and self.is_initialized

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.layers)

    @property
    def batch_size(self) -> int:
        return len(self.streams.seen) or -1

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """Return the input columns seen since the last reset, padding included; `generate` slices its inputs by it."""
        return self.streams.columns

    def get_query_offset(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> NoReturn:
        refuse_plain_model()  # it asks this for its mask, before its layers change any state; ours makes no mask

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0, *args: Any, **kwargs: Any) -> NoReturn:
        refuse_plain_model()

    def __repr__(self) -> str:
        s, w, prefill = self.settings.sink_size, self.settings.window_size, self.settings.prefill
        dtype = self.settings.cache_dtype
        return (
            f"{type(self).__name__}(attention_sink_size={s}, attention_sink_window_size={w}, "
            f"attention_sink_prefill={prefill!r}, attention_sink_cache_dtype={dtype!r}, "
            f"layers={len(self.layers)}, tokens_seen={self.tokens_seen.tolist()}, "
            f"tokens_cached={self.tokens_cached.tolist()}, nbytes={self.nbytes})"
        )

    # ---- what changes it

    def reset(self) -> None:
        """Forget all streams; the next call may bring another batch size."""
        self.layer_stack.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was; beams reorder whole streams. `beam_idx` [batch] int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, one copy after the other, as for beams or several returned sequences."""
        rows = torch.arange(len(self.streams.seen), dtype=torch.long, device="cpu")
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` [new batch] int64 or bool [batch], in that order."""
        rows = torch.arange(len(self.streams.seen), dtype=torch.long, device=indices.device)
        if len(rows):
            self.layer_stack.select(rows[indices])

    # ---- rows of several caches

    def new_empty(self) -> AttentionSinkKVCache:
        """Return a new cache without streams, for the same model, S, W and dtype."""
        settings = self.settings
        return type(self)(self._owner(), settings.sink_size, settings.window_size, settings.cache_dtype)

    def take(self, row: int) -> AttentionSinkKVCache:
        """Return a new cache of one row, a copy of `row`; this cache stays as it is.

        It has the columns of this cache, and records when this one does. A row that has seen no token gives an empty
        cache.

        Raises
        ------
        ValueError
            When there is no such row.
        """
        self.streams.settle()
        (row,) = row_indices("row", [row], len(self.streams.seen))
        return self._made_of([(self.layer_stack, [row])] if self.streams.seen[row] else [])

    def put(self, row: int, other: AttentionSinkKVCache) -> None:
        """Make `row` a copy of the only row of `other`, which stays as it is; buffers are written in place.

        The last columns of both caches become the same columns, and whichever had fewer counts as padded before: the
        batch is as if it had been padded on the left. An empty cache clears the row.

        Parameters
        ----------
        row : int
            Which row, from 0 on. What it held is forgotten.
        other : AttentionSinkKVCache
            A cache of the same model, S, W, dtype and shapes. It may be on another device.

        Raises
        ------
        ValueError
            When there is no such row, or `other` has several rows or does not fit. Nothing has changed then.
        """
        self.streams.settle()
        (row,) = row_indices("row", [row], len(self.streams.seen))
        self._check_fits(other, "other")
        if len(other.streams.seen) > 1:
            raise ValueError(f"other has {len(other.streams.seen)} rows, put takes one; pass other.take(row).")
        replace_rows(self.layer_stack, [row], other.layer_stack if any(other.streams.seen) else None)

    @classmethod
    def stack(cls, caches: Sequence[AttentionSinkKVCache]) -> AttentionSinkKVCache:
        """Return a new cache with copies of the rows of all `caches`, in their order.

        An empty cache gives one row that has seen no token; empty caches alone give an empty cache. Columns count as
        after `put`. All is on the device of the first cache that is not empty.

        Raises
        ------
        ValueError
            When there are no caches, or they do not fit together as `put` asks.
        """
        if isinstance(caches, Cache) or not (caches := list(caches)):
            raise ValueError("caches has no rows to stack; pass a list of one cache at least.")
        for number, cache in enumerate(caches):
            _check_is_cache(cache, f"caches[{number}]")
            cache.streams.settle()
        first = next((cache for cache in caches if any(cache.streams.seen)), None)
        first = first or next((cache for cache in caches if cache.is_initialized), caches[0])
        for number, cache in enumerate(caches):
            first._check_fits(cache, f"caches[{number}]")
        parts = [(cache.layer_stack, range(max(1, len(cache.streams.seen)))) for cache in caches]
        return first._made_of(parts if first.is_initialized else [])

    def clear_rows(self, rows: Iterable[int]) -> None:
        """Forget the streams of these rows, in place: each is a row that has seen no token, whose next ones are sinks.

        In all columns so far it counts as padding. Nothing of it stays in memory. `reset` forgets all rows and columns.

        Raises
        ------
        ValueError
            When there is no such row. Nothing has changed then.
        """
        self.streams.settle()
        if indices := row_indices("rows", rows, len(self.streams.seen)):
            replace_rows(self.layer_stack, indices, None)

    def _check_fits(self, other: AttentionSinkKVCache, name: str) -> None:
        """Refuse `other`, called `name`, when its rows cannot be rows of this cache, which has settled."""
        _check_is_cache(other, name)
        other.streams.settle()
        if other is self:
            return
        if other._model() is not self._owner():
            raise ValueError(f"{name} was made for another model than cache; use caches of one model.")
        if other.settings != self.settings:
            raise ValueError(
                f"{name} has {_in_words(other.settings)}, but cache has {_in_words(self.settings)}; use caches of one "
                "size, prefill mode and dtype."
            )
        if not any(other.streams.seen):
            return
        if other.facts != self.facts:
            raise ValueError(
                f"{name} holds keys at other positions than cache, because the model's config or frequencies have been "
                "changed between them; reset() the older one and feed its text again."
            )
        check_layers_fit(self.layer_stack, other.layer_stack, name)

    def _made_of(self, parts: Sequence[Part]) -> AttentionSinkKVCache:
        """Return a new cache with copies of the rows of `parts`, which fit this cache; without parts, an empty one.

        It records when this one does.
        """
        setup, table = setup_of(self._owner()), self.table()
        if [line[:2] for line in table.facts] != [line[:2] for line in self.facts]:
            raise ValueError(
                "cache was made when the config of its model was another, so no new cache can hold its rows; use "
                "copy.deepcopy(cache) instead."
            )
        made = type(self).__new__(type(self))
        made.settings, made._hold, made._model = self.settings, self._hold, self._model
        made._begin(setup, table)
        if self.is_recording:
            made.layer_stack.record(True)
        if parts:
            made.facts = self.facts
            fill(made.layer_stack, parts, self.layer_stack)
        return made

    # ---- taking columns back

    def activate_past_recording(self) -> None:
        """From now on keep what leaves the window, so that `crop` can take more than one token back from a full row.

        What is kept grows by the tokens fed between two crops, to those of 1,024 columns at most.
        """
        self.layer_stack.check_has_no_states("activate_past_recording()")
        self.layer_stack.record(True)

    def deactivate_past_recording(self) -> None:
        """Stop what `activate_past_recording` began and let go of what was kept for it."""
        self.layer_stack.record(False)

    @property
    def is_recording(self) -> bool:
        """Whether what leaves the window is kept for `crop`; Transformers may switch that off in the layers."""
        return self.layer_stack.is_recording

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last input columns back: the streams are as if they had never been fed.

        One column can be taken back once after every call, and any number while no row has more than S+W+1 tokens.
        More of a full row needs `activate_past_recording()` before they are fed, and then at most 1,024.

        Parameters
        ----------
        tokens_to_remove : int
            -n takes n columns back, padding included, as Transformers counts them. 0 takes nothing back and lets go of
            what was recorded, except for the last 64 columns.

        Raises
        ------
        ValueError
            For a positive number, or for more columns than can be taken back; the cache is then as it was.
        """
        columns = -operator.index(tokens_to_remove)
        self.streams.settle()
        if columns < 0:
            raise ValueError(
                f"crop({-columns}) is not supported: pass a negative number, crop({columns}) takes {-columns} back."
            )
        self.layer_stack.check_has_no_states(f"crop({-columns})")
        if columns == 0:
            return self.layer_stack.trim()
        returnable = self.streams.returnable
        if columns > returnable:
            raise ValueError(
                f"crop(-{columns}) asks for more than is kept: {returnable} of the columns fed can be taken back now. "
                "Call activate_past_recording() before feeding what you may want to take back, or make a "
                "copy.deepcopy(cache) first."
            )
        self.layer_stack.take_back(columns, self.table().positions)

    # ---- saving

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to one safetensors file, so that `load` goes on bit for bit where it stands.

        The file holds keys, values, counters and S and W. It replaces what is at `path` once it is complete, and keeps
        the mode of that; a new file is readable by its owner alone. What was recorded for `crop` is not saved; the one
        token that can always be taken back is.

        Raises
        ------
        OSError
            When the file cannot be written, or `path` is a folder, a FIFO, a device or a socket.
        NotImplementedError
            When the model keeps states beside its attention.
        """
        write_file(path, *self.snapshot())

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module) -> AttentionSinkKVCache:
        """Return the cache saved to `path`, for the model it was made for or the same checkpoint loaded anew.

        A model is known by facts of its config (type, sizes, rotary parameters) and samples of all its weights, their
        dtype included. S and W are those of the saved cache.

        Raises
        ------
        OSError
            When there is no such file, or `path` is a folder, a FIFO, a device or a socket.
        ValueError
            When the file is truncated, altered or something else, or its cache is of another model or prefill mode.
            Nothing has been made then.
        """
        setup_of(model)  # raises what concerns the model alone
        tensors, state = read_file(path)
        with naming(path):
            return cls.from_snapshot(model, tensors, state)

    def snapshot(self, known: dict[str, Any] | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the cache as tensors by name and plain data, from which `from_snapshot` makes it again.

        `known` is the fingerprint of the model, where that is at hand.
        """
        self.streams.settle()
        self.check_can_be_saved("save")
        known = self.fingerprint_of(self._owner()) if known is None else known
        return take_snapshot(self.settings, self.layer_stack, known)

    def check_can_be_saved(self, action: str) -> None:
        """Raise NotImplementedError when no file can hold the cache, which `action` asks for."""
        self.layer_stack.check_has_no_states(action)

    @classmethod
    def fingerprint_of(cls, model: nn.Module) -> dict[str, Any]:
        """Return what tells `model` from others in snapshots. To take it reads some of every weight."""
        return fingerprint(base_model_of(model))

    @classmethod
    def from_snapshot(
        cls,
        model: nn.Module,
        tensors: dict[str, torch.Tensor],
        state: dict[str, Any],
        known: dict[str, Any] | None = None,
    ) -> AttentionSinkKVCache:
        """Return the cache of which `snapshot` was taken, for `model`; ValueError when it does not fit.

        `known` is the fingerprint of the model, as in `snapshot`.
        """
        known = cls.fingerprint_of(model) if known is None else known
        saved = fitting_state(tensors, state, model, known)
        cache = cls(model, *saved.settings[:2], saved.cache_dtype)
        restore_snapshot(cache.layer_stack, cache._owner(), tensors, saved)
        return cache

    # ---- the model it was made for

    def _owner(self) -> PreTrainedModel:
        """Return the base model that the cache was made for; ValueError when it is gone."""
        model = self._model()
        if model is None:
            raise ValueError("the model this cache was made for is gone; keep the model as long as its caches.")
        return model

    def table(self) -> LayerTable:
        """Return what each layer's queries see, and how it knows where its keys are."""
        return setup_of(self._owner()).layer_table(self.settings)

    def serves(self, setup: Setup, batch_size: int) -> bool:
        """Return whether this cache is for the model of `setup` and its prefill, and has `batch_size` rows or none.

        It is not sure to be where somebody has changed the model's config or its frequencies.
        """
        seen = self.streams.seen
        return (
            self._model() is setup.model
            and self.settings.prefill == setup.settings.prefill
            and (not seen or len(seen) == batch_size)
            and setup.config_as_read == vars(setup.model.config)
            and all(map(Source.is_current, setup.sources))
        )

    def was_made_for(self, model: nn.Module) -> bool:
        """Return whether this cache was made for the base model `model`, whatever that is set to by now."""
        return self._model() is model

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionSinkKVCache:
        """Fork the streams: both caches go on from here. A cache copied along with its model serves that copy."""
        self.streams.settle()
        fork = memo[id(self)] = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            fork.__dict__[name] = value if name == "_model" else copy.deepcopy(value, memo)
        model = self._model()
        if id(model) in memo:
            fork._model = weakref.ref(memo[id(model)])
        return fork

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled: it belongs to a model. Use cache.save(path) and "
            f"{type(self).__name__}.load(path, model), or copy.deepcopy(cache)."
        )


def _check_is_cache(cache: Any, name: str) -> None:
    if not isinstance(cache, AttentionSinkKVCache):
        raise TypeError(f"{name} is a {type(cache).__name__}; pass an AttentionSinkKVCache.")


def _in_words(settings: SinkSettings) -> str:
    return (
        f"S={settings.sink_size}, W={settings.window_size}, attention_sink_prefill={settings.prefill!r}, "
        f"attention_sink_cache_dtype={settings.cache_dtype!r}"
    )
