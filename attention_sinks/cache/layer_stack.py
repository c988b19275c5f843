"""All layers of one cache: what a call does to them, and how columns are taken back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..plan.counters import Counters
from ..plan.layer import LayerPlan
from ..positions.schemes import Position
from .layer import Layer
from .sink_layer import SinkLayer
from .stream_state import COMMITTED_COLUMNS, StreamState, selected


class LayerStack:
    """The layers of one cache and the streams that they hold. It knows neither the model nor the user's settings.

    A call begins with `begin` and ends with `end`, and `commit_step` or `commit` comes between when it does not break
    off. Every change is one act, as `StreamState` describes.

    Parameters
    ----------
    layers : list of Layer
        One for each layer of the model.
    streams : StreamState
        Where the streams stand. The layers share it.
    groups : sequence of int
        A number for each layer. Layers with the same number see the same keys and know positions alike.

    Attributes
    ----------
    keeps_states : bool
        Whether any layer keeps states that are not per token.
    rebases : bool
        Whether origins move and recent keys are rotated again, such that angles stay small. Keys with a precision of
        their own would be rounded again. Their origins stay, and their angles grow; they are made in float64.
    """

    def __init__(self, layers: list[Layer], streams: StreamState, groups: Sequence[int]) -> None:
        self.layers, self.streams, self._groups = layers, streams, tuple(groups)
        self._sink_layers = [layer for layer in layers if isinstance(layer, SinkLayer)]
        self._states_layers = [layer for layer in layers if layer.keeps_states]
        self.keeps_states = bool(self._states_layers)
        self.rebases = all(layer.precision is None for layer in self._sink_layers)
        self._has_log = False
        self._rotated_together: list[tuple[int, list[SinkLayer]]] = []  # each with the index of its first layer

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Everything that is stored: counters, keys, values, states and undo logs."""
        counters = self.streams.device.tensors if self.streams.device else ()
        stored = (layer.tensors + layer.undo_tensors for layer in self.layers)
        return [tensor for tensors in (counters, *stored) for tensor in tensors]

    # ---- the course of a call

    def begin(self, call: object, columns: int) -> None:
        """Prepare for `call`, which has `columns` columns and may break off."""
        self.streams.settle()
        self._begin(call, columns)

    def _begin(self, call: object, columns: int) -> None:
        for layer in self._states_layers:
            layer.begin()
        self.streams.begin(call, partial(self._discard, columns))

    def end(self, call: object) -> None:
        """Leave the streams as they were before `call` when it broke off.

        Raises
        ------
        RuntimeError
            When the streams have been forgotten meanwhile. What the call has written since is forgotten, too.
        """
        self.streams.end(call)
        if self.streams.lost is call:
            self.reset()
            raise RuntimeError("cache was reset while a call streamed through it; what the call brought is lost.")

    def rebase(self, shift: Sequence[int], positions: Sequence[Position]) -> None:
        """Rotate the recent keys of each row back by `shift[row]`, by which its origin moves.

        This takes effect with `commit`. `positions` are those of the layers.
        """
        moved = torch.tensor(shift if len(set(shift)) > 1 else shift[:1], dtype=torch.long, device="cpu")[:, None]
        with torch.no_grad():
            for layer, position in zip(self.layers, positions, strict=True):
                layer.rebase(position, moved)

    def rotate_sinks(self, plan_of: Callable[[int, torch.Tensor], LayerPlan]) -> None:
        """Bring the sinks to where the query of a step must see them, those of layers that are alike together.

        In a graph, layers without a precision do this by themselves: see `SinkLayer`.
        `plan_of` returns the plan of a layer, from its index and states of its dtype and device.
        """
        for index, layers in self._rotated_together:
            if torch.compiler.is_compiling() and layers[0].precision is None:
                continue
            plan = plan_of(index, layers[0].sink_slots)
            if plan.sink_rotation is None:
                continue
            if layers[0].precision is not None:
                sinks = layers[0].decoded_sinks(layers)
            else:
                sinks = layers[0].sinks if len(layers) == 1 else torch.cat([layer.sinks for layer in layers], dim=1)
            parts = plan.rotate(sinks, plan.sink_rotation).chunk(len(layers), dim=1)
            torch._foreach_copy_([layer.sink_slots for layer in layers], parts)

    def group_sinks(self) -> None:
        """Find the layers whose sinks are rotated together, once they have buffers."""
        alike: defaultdict[tuple[object, ...], list[SinkLayer]] = defaultdict(list)
        for group, layer in zip(self._groups, self.layers, strict=True):
            if isinstance(layer, SinkLayer) and layer.rotates and layer.sinks.numel():
                shown = layer.sink_slots
                alike[group, shown.shape, shown.dtype, shown.device].append(layer)
        self._rotated_together = [(self.layers.index(layers[0]), layers) for layers in alike.values()]

    def commit_step(self, real: torch.Tensor | None) -> None:
        """Keep a step, which has written its tokens in place; `real` [batch, 1] says whose they are (None: all)."""
        recording = self.is_recording
        layers = self.layers if self._has_log else self._states_layers
        self.streams.change(self.streams.after_step(real, recording), partial(_commit, layers) if layers else None)
        self._has_log = recording

    def commit(self, counters: Counters, columns: int, real: torch.Tensor | None, device: torch.device) -> None:
        """Keep what a call of `columns` columns brought, `real` of them tokens; it leaves the streams at `counters`."""
        standing = self.streams.after(counters, columns, real, self.is_recording)
        self.streams.change(standing, self._commit, device)

    def commit_rebase(self, counters: Counters) -> None:
        """Keep what `rebase` has rotated, in the middle of a step. It stays also when the step breaks off."""
        call = self.streams.in_use["call"]
        self.commit(counters, 0, None, self._sink_layers[0].sinks.device)
        self._begin(call, 1)

    def _commit(self) -> None:
        _commit(self.layers)
        if not self._rotated_together:
            self.group_sinks()

    def _discard(self, columns: int) -> None:
        """Leave the streams as they were before a call of `columns` columns, which broke off."""
        with torch.no_grad():
            for layer in self.layers:
                layer.discard()
        if columns == 1 and not self.is_recording:
            self.streams.lose_evicted()

    # ---- between calls

    def reset(self) -> None:
        """Forget all streams, also those of a call that never ended."""
        self.streams.clear(self._forget)

    def _forget(self) -> None:
        self._rotated_together = []
        for layer in self.layers:
            layer.reset()

    def select(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` [new batch] int64, in that order."""
        self.streams.settle()
        now = self.streams.now()
        standing = None if now is None else selected(now, indices.tolist())
        self.streams.change(standing, partial(self._select, indices, object()))

    def _select(self, indices: torch.Tensor, act: object) -> None:
        for layer in self.layers:
            layer.select(indices, act)

    # ---- taking columns back

    @property
    def is_recording(self) -> bool:
        """Whether what leaves the window is kept. Transformers may switch that off in the layers."""
        return self._sink_layers[0].record_past

    def record(self, recording: bool) -> None:
        """From now on keep what leaves the window, or let go of what was kept."""
        self.streams.settle()
        self._has_log = self._has_log or recording
        standing = self.streams.now() if recording else self.streams.recorded(0)
        self.streams.change(standing, partial(self._record, recording))

    def _record(self, recording: bool) -> None:
        for layer in self.layers:
            layer.record(recording)

    def take_back(self, columns: int, positions: Sequence[Position]) -> None:
        """Take the last `columns` columns back, as many as are returnable; `positions` are those of the layers."""
        self.streams.settle()
        now = self.streams.now()
        assert now is not None  # there are columns to take back
        before, history = now
        after = before.back(history.count(columns), max(layer.reach.cached_size for layer in self._sink_layers))
        with torch.no_grad():
            changes = [
                layer.take_back(before, after, position) for layer, position in zip(self.layers, positions, strict=True)
            ]
        self.streams.change((after, history.back(after, columns)), partial(make_all, changes))

    def trim(self) -> None:
        """Let go of what was recorded, except for the last columns."""
        self.streams.settle()
        if self.is_recording:
            self.streams.change(self.streams.recorded(COMMITTED_COLUMNS), self._trim)

    def _trim(self) -> None:
        for layer in self.layers:
            layer.trim(COMMITTED_COLUMNS)

    def check_has_no_states(self, action: str) -> None:
        """Raise NotImplementedError when a layer keeps what `action` can neither take back nor store."""
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, Layer) or layer.keeps_states:
                raise NotImplementedError(
                    f"{action} is not supported: layer {index} keeps a {type(layer).__name__}, whose state cannot be "
                    "taken back or stored; use copy.deepcopy(cache) instead."
                )


def _commit(layers: Sequence[Layer]) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.commit()


def make_all(changes: Sequence[Callable[[], None]]) -> None:
    """Make `changes` of layers, one after the other."""
    with torch.no_grad():
        for change in changes:
            change()
