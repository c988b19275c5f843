"""The keys and values of one attention layer: buffers of fixed size, which hold the sinks and a ring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ..plan.block import BlockPlan
from ..plan.counters import Counters
from ..plan.layer import LayerPlan, Rounded
from ..plan.reach import Reach
from ..plan.token import TokenPlan
from ..positions.schemes import Position
from .columns import KeysValues, picked, put, rotated, take, write_rows
from .layer import Layer, nothing, refuse_plain_model
from .precision import Form, Forms, encoded, without_autocast
from .stream_state import StreamState
from .undo import NOWHERE, Evicted, UndoLog, evicted_by_block, evicted_by_token

NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")
"""It holds the place of a buffer that the first call will make."""


Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Keys, values and sinks, in this order."""


class SinkLayer(Layer, CacheLayerMixin):
    """Sinks and window of one layer, for all rows of a batch.

    Attributes
    ----------
    keys, values : torch.Tensor or None
        [batch, num_key_value_heads, S+W+1, head_dim]: S sinks, then a ring of W+1 slots (see `plan`). Recent keys stay
        rotated as they were when they came; the first S slots hold the sinks as the last step saw them. None until the
        first call has made the buffers.
    stored_dtype : torch.dtype or None
        The dtype of keys as they are kept. Without a precision the first call decides, for values as well: where
        autocast makes keys and values of two dtypes, it is the wider one. What comes in another dtype is converted, and
        attention gets it back in that. None before.
    precision : tuple of Form or None
        The forms in which keys and values are rounded; None where they are kept as they come. With a precision the
        sinks change places: the first S slots hold them as they first were, and a buffer in the model's dtype holds
        them as the last step saw them, because what is rotated from step to step must not be rounded again.
    sinks : torch.Tensor
        [batch, num_key_value_heads, S, head_dim], the rotated part of the sinks as it was at their own positions
        0..S-1. It is never changed, so its rounding error does not grow with the stream. It is empty where nothing is
        rotated.
    sink_slots : torch.Tensor
        The sinks as the last step saw them. One of `sinks` and `sink_slots` is a buffer, the other a view of slots.
    pending : tuple of torch.Tensor or None
        During a call of several tokens, what keys, values and sinks will be when the call is done. A call that breaks
        off leaves the buffers as they were.
    log : UndoLog
        What has left the ring while `record_past` was set, for `take_back`.
    """

    is_compileable = False
    is_sliding = False
    record_past = False

    def __init__(
        self, reach: Reach, streams: StreamState, rotates: bool = True, precision: Forms | None = None
    ) -> None:
        """`rotates` says whether positions rotate the keys."""
        CacheLayerMixin.__init__(self)
        self.reach: Reach = reach
        self.streams, self.rotates, self.precision = streams, rotates, precision
        self.sinks = self.sink_slots = NOTHING
        self.stored_dtype = self._chosen_dtype
        self.pending: Buffers | None = None
        self.log = UndoLog()
        self._act: object = None  # the last selection of rows, which is not done twice

    # ---- which part is rotated

    def rotated_part(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return what positions rotate."""
        return keys

    def with_rotated_part(self, part: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        """Return keys and values with `part` in place of their rotated part."""
        return part, values

    @property
    def part_form(self) -> Form:
        """The form in which the rotated part is rounded, in a layer with a precision."""
        assert self.precision is not None
        return self.precision[0]

    # ---- its buffers

    @property
    def buffers(self) -> Buffers:
        """Keys, values and sinks."""
        assert self.keys is not None and self.values is not None  # asked for only once they are made
        return self.keys, self.values, self.sinks if self.precision is None else self.sink_slots

    @property
    def _chosen_dtype(self) -> torch.dtype | None:
        """The stored dtype before the first call."""
        return None if self.precision is None else self.precision[0].dtype

    @property
    def kept_sinks(self) -> int:
        """How many sinks have a buffer beside their slots."""
        return self.reach.sink_size if self.rotates else 0

    def sinks_in(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the rotated part of the sinks in slots or columns that begin with them."""
        return self.rotated_part(keys, values).narrow(2, 0, self.kept_sinks)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (*(self.buffers if self.is_initialized else ()), *super().tensors)

    def decoded(self) -> Buffers:
        """Return keys, values and sinks as attention takes them, wherever heads of keys and values are alike."""
        if self.precision is None:
            return self.buffers
        (keys, values, shown), (key_form, value_form) = self.buffers, self.precision
        return key_form.decode(keys, shown), value_form.decode(values, shown), self.decoded_sinks([self])

    def decoded_sinks(self, layers: Sequence[SinkLayer]) -> torch.Tensor:
        """Return the sinks of `layers`, which are like this one, beside each other as attention takes them.

        They are read from the buffers: a graph that was handed both a buffer and a view of it would copy the buffer.
        """
        with without_autocast(self.sink_slots.device.type):
            sinks = torch.cat([layer.sinks_in(*layer.buffers[:2]) for layer in layers], dim=1)
            return self.part_form.decode(sinks, self.sink_slots)

    @property
    def undo_tensors(self) -> tuple[torch.Tensor, ...]:
        return self.log.tensors

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        size, keys, values, like = self.reach.visible_size, key_states, value_states, (key_states, value_states)
        with torch.inference_mode(False), torch.no_grad():
            if self.precision is not None:
                keys, values = encoded(self.precision, *like)
            sinks = _zeros(self.rotated_part(*like), self.kept_sinks)
            self._hold(_zeros(keys, size), _zeros(values, size), sinks)

    def _hold(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor,
        log: UndoLog | None = None,
        act: object = None,
    ) -> None:
        """From now on these are the buffers, and this is the log after the selection `act`."""
        with torch.inference_mode(False), torch.no_grad():
            slots = self.sinks_in(keys, values)
        first, shown = (sinks, slots) if self.precision is None else (slots, sinks)
        if keys.device.type == "cuda":  # a CUDA graph would copy what it does not know to stay where it is
            for buffer in (keys, values, sinks):
                torch._dynamo.mark_static_address(buffer)
        log = self.log if log is None else log
        self.dtype, self.device, self.stored_dtype = keys.dtype, keys.device, keys.dtype
        self.keys, self.values, self.sinks, self.sink_slots, self.log, self._act, self.is_initialized = (
            *(keys, values, first, shown, log, act),
            True,
        )

    def restore(self, tensors: Sequence[torch.Tensor]) -> None:
        with torch.inference_mode(False):
            keys, values, sinks = (tensor.clone() for tensor in tensors)
            self._hold(keys, values, sinks)

    def reset(self) -> None:
        self.keys = self.values = self.pending = None
        self.stored_dtype, self.sinks, self.sink_slots = self._chosen_dtype, NOTHING, NOTHING
        self.log = UndoLog()
        self.is_initialized = False
        super().reset()

    def select(self, indices: torch.Tensor, act: object) -> None:
        if self.is_initialized and self._act is not act:
            with torch.inference_mode(False):
                keys, values, sinks = [buffer.index_select(0, indices.to(buffer.device)) for buffer in self.buffers]
                log = self.log.select(indices.to(keys.device))
            self._hold(keys, values, sinks, log, act)
        super().select(indices, act)

    # ---- rows of other caches

    def hold_rows(self, like: Layer, batch_size: int) -> None:
        assert isinstance(like, SinkLayer)  # the same layer of the same model
        if like.is_initialized:
            with torch.inference_mode(False):
                keys, values, sinks = [buffer.new_zeros(batch_size, *buffer.shape[1:]) for buffer in like.buffers]
                self._hold(keys, values, sinks)
        super().hold_rows(like, batch_size)

    def replacing(self, rows: torch.Tensor, source: Layer | None, taken: torch.Tensor) -> list[Callable[[], None]]:
        changes = super().replacing(rows, source, taken)
        if not self.is_initialized:
            return changes
        assert source is None or isinstance(source, SinkLayer)
        copies: list[torch.Tensor | int] = [0] * 3
        with torch.inference_mode(False), torch.no_grad():
            if source is not None:
                copies = [picked(buffer, taken) for buffer in source.buffers]
            log = self._log_with(rows, source, taken)
        return [*changes, partial(self._write_rows, rows, copies, log)]

    def _log_with(self, rows: torch.Tensor, source: SinkLayer | None, taken: torch.Tensor) -> UndoLog:
        """Return the log when its rows `rows` become the rows `taken` of the log of `source`, or empty."""
        joins = UndoLog() if source is None else source.log.select(taken.to(source.device))
        if not self.log and not joins:
            return self.log
        size = self.buffers[0].shape[0]
        indices = torch.arange(size, dtype=torch.long, device="cpu")
        indices[rows] = torch.arange(size, size + len(rows), dtype=torch.long, device="cpu")
        return UndoLog.joined([(self.log, size), (joins, len(rows))]).select(indices.to(self.device))

    def _write_rows(self, rows: torch.Tensor, copies: Sequence[torch.Tensor | int], log: UndoLog) -> None:
        for buffer, copy in zip(self.buffers, copies, strict=True):
            write_rows(buffer, rows, copy)
        self.log = log

    # ---- a call

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer: LayerPlan | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> KeysValues:
        """Store new keys and values and return those to attend to, in the order that `layer.plan` describes."""
        if not isinstance(layer, LayerPlan):
            refuse_plain_model()
        if self.precision is not None:
            return self._update_rounded(key_states, value_states, layer)
        dtypes = key_states.dtype, value_states.dtype
        if self.stored_dtype is None:
            self.stored_dtype = torch.promote_types(*dtypes)
        if dtypes != (self.stored_dtype, self.stored_dtype):
            own = self.stored_dtype
            all_keys, all_values = self.update(key_states.to(own), value_states.to(own), layer)
            return all_keys.to(dtypes[0]), all_values.to(dtypes[1])
        plan = layer.plan
        if isinstance(plan, BlockPlan):
            return self._update_block(key_states, value_states, plan, self.rotated_part(key_states, value_states))
        return self._update_token(key_states, value_states, layer, plan)

    def _update_rounded(self, key_states: torch.Tensor, value_states: torch.Tensor, layer: LayerPlan) -> KeysValues:
        """Do the same with a precision: new keys and values are rounded before they are stored and attended to."""
        assert self.precision is not None
        plan, (key_form, value_form) = layer.plan, self.precision
        with torch.no_grad(), without_autocast(key_states.device.type):
            key, value = encoded(self.precision, key_states, value_states)
            if isinstance(plan, BlockPlan):
                kept = self._update_block(key, value, plan, self.rotated_part(key_states, value_states))
            else:
                kept = self._update_token(key, value, layer, plan)
            keys, values = key_form.decode(kept[0], key_states), value_form.decode(kept[1], value_states)
        if isinstance(plan, BlockPlan):
            return _with_gradient_of(key_states, keys), _with_gradient_of(value_states, values)
        unpacked = self._with_sinks_shown(keys, values, layer)
        if plan.may_be_sink and self.rotated_part(*unpacked) is unpacked[0]:
            layer.rounded[:] = [Rounded(*kept, self.sinks_in(*unpacked), unpacked)]
        return unpacked

    def _update_token(self, key: torch.Tensor, value: torch.Tensor, layer: LayerPlan, plan: TokenPlan) -> KeysValues:
        """Store the token of a step and return the slots in use."""
        keys, values = self.keys, self.values
        assert keys is not None and values is not None  # the first call of a stream has a block plan
        if self.record_past:
            with torch.inference_mode(False):
                self.log = self.log.add(evicted_by_token(keys, values, plan, self.reach))
        slot = plan.slot
        if slot.shape[0] == 1 and plan.active is None and not plan.may_be_sink:
            keys.index_copy_(2, slot, key)
            values.index_copy_(2, slot, value)
        elif plan.may_be_sink and self.precision is None:
            self._put_beside_sinks(key, value, layer, plan)
        else:
            put(keys, key, slot[:, None], plan.active)
            put(values, value, slot[:, None], plan.active)
        if plan.used == self.reach.visible_size:
            return keys, values
        return keys[:, :, : plan.used], values[:, :, : plan.used]

    def _put_beside_sinks(self, key: torch.Tensor, value: torch.Tensor, layer: LayerPlan, plan: TokenPlan) -> None:
        """Store the token of a step in a graph, which may be a sink, and the sinks as the step must see them.

        Both are written at once: of two changes of a buffer in one graph, the first one would copy all of it.
        """
        part, slots, sinks = self.rotated_part(key, value), plan.slot[:, None], self.sinks.shape[2]
        if sinks:
            among = plan.slot < sinks if plan.active is None else (plan.slot < sinks) & plan.active
            put(self.sinks, part, slots.clamp(max=sinks - 1), among)
        if sinks and layer.sink_rotation is not None:  # a sink that has just come is rotated by nothing
            shown = layer.rotate(self.sinks, layer.sink_rotation).to(part.dtype)
            part = torch.cat((shown, part), dim=2)
            first = torch.arange(sinks, dtype=torch.long, device=slots.device)
            slots = torch.cat((first.expand(slots.shape[0], -1), slots), dim=1)
        for buffer, new in zip(self.buffers[:2], self.with_rotated_part(part, key, value), strict=True):
            put(buffer, new, slots[:, -new.shape[2] :], plan.active)

    def _with_sinks_shown(self, keys: torch.Tensor, values: torch.Tensor, layer: LayerPlan) -> KeysValues:
        """Return the keys and values of a step with the sinks as it must see them."""
        plan, size = layer.plan, self.sink_slots.shape[2]
        if not size or layer.sink_rotation is None:
            return keys, values
        assert plan.delta is not None  # from it follows how sinks are rotated
        part, moved = self.rotated_part(keys, values), plan.delta[:, :, None, None] != 0
        own = part[:, :, :size]  # where alone a sink is that has just come
        shown = torch.where(moved, self.sink_slots.to(part.dtype), own)
        if part.dtype != self.stored_dtype:  # then it is no buffer
            own.copy_(shown)
            return keys, values
        return self.with_rotated_part(torch.cat((shown, part[:, :, size:]), dim=2), keys, values)

    def _update_block(self, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, part: torch.Tensor) -> KeysValues:
        """Return past and new keys and values; what the next call needs waits until the whole call is done.

        `part` is the rotated part of the new ones as they came.
        """
        before = self.pending or (self.buffers if self.is_initialized else None)
        if before is not None and plan.past is not None:
            sinks, window = self._past(before, plan.past)
            key, value = (torch.cat(parts, dim=2) for parts in zip(sinks, window, (key, value), strict=True))
        with torch.inference_mode(False), torch.no_grad():  # buffers of inference mode cannot be written outside it
            keys, values = take(key, plan.kept), take(value, plan.kept)
            after = keys, values, self._sinks_after(keys, values, part)
            if before is not None and plan.past is not None and plan.idle is not None:
                idle = plan.idle[:, None, None, None]
                keys, values, first = (torch.where(idle, *both) for both in zip(before, after, strict=True))
                after = keys, values, first
            self.pending = after
            if self.record_past:
                ring = None if before is None else before[:2]
                self.log = self.log.add(evicted_by_block(ring, (key, value), plan, self.reach))
        return key, value

    def _past(self, buffers: Buffers, slots: torch.Tensor) -> tuple[KeysValues, KeysValues]:
        """Return what is cached: the sinks as they first were, and the window in `slots` from old to new."""
        keys, values, sinks = buffers
        size = self.reach.sink_size
        first = keys[:, :, :size], values[:, :, :size]
        if self.rotates and self.precision is None:
            first = self.with_rotated_part(sinks, *first)
        return first, (take(keys, slots), take(values, slots))

    def _sinks_after(self, keys: torch.Tensor, values: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return what the buffer of the sinks holds after a block that leaves these in the slots."""
        if self.precision is None:
            return self.sinks_in(keys, values).clone()
        return self.sink_slots if self.is_initialized else _zeros(part, self.kept_sinks)

    def rebase(self, position: Position, shift: torch.Tensor) -> None:
        if self.rotates and (self.pending or self.is_initialized):
            keys, values, sinks = self.pending or self.buffers
            part = self.rotated_part(keys, values)
            first, ring = part.split([self.reach.sink_size, self.reach.window_size + 1], dim=2)
            part = torch.cat([first, rotated(ring, position, -shift.to(ring.device))], dim=2)
            self.pending = *self.with_rotated_part(part, keys, values), sinks

    def commit(self) -> None:
        if self.record_past:
            self.log = self.log.commit()
        elif self.log:  # Transformers has switched recording off
            self.log = UndoLog()
        if self.pending is not None:
            if not self.is_initialized:
                self._hold(*self.pending)
            for buffer, states in zip(self.buffers, self.pending, strict=True):
                if states is not buffer:
                    buffer.copy_(states)
            self.pending = None
        super().commit()

    def discard(self) -> None:
        if self.pending is None:  # a step writes in place
            for evicted in self.log.new:
                evicted.put_back(*self.buffers[:2], self.reach)
        self.log = replace(self.log, new=())
        self.pending = None
        if not self.is_initialized:
            self.stored_dtype = self._chosen_dtype
        super().discard()

    # ---- taking tokens back

    def record(self, recording: bool) -> None:
        self.record_past = recording
        if not recording:
            self.log = UndoLog()

    def trim(self, columns: int) -> None:
        self.log = self.log.trim(columns)

    def take_back(self, before: Counters, after: Counters, position: Position) -> Callable[[], None]:
        if not self.is_initialized:
            return nothing
        keys, values, _ = self.buffers
        seen, origin = _column(after.seen, keys.device), _column(after.origin, keys.device)
        ring = None
        if self.rotates and before.origin != after.origin:
            ring = self.rotated_part(keys, values)[:, :, self.reach.sink_size :]
            ring = rotated(ring, position, _column(before.origin, ring.device) - origin)
        log, returned = self.log.take_back(seen - self.reach.window_size - 1)
        lost = [
            replace(each, positions=each.positions.masked_fill(each.positions >= seen, NOWHERE)) for each in returned
        ]
        return partial(self._put_back, ring, [self._moved(each, position, each.origin - origin) for each in lost], log)

    def _moved(self, evicted: Evicted, position: Position, shift: torch.Tensor) -> Evicted:
        """Return `evicted` with its keys rotated by `shift` [R, 1]."""
        if not self.rotates or not bool(shift.any()):
            return evicted
        part = rotated(self.rotated_part(evicted.keys, evicted.values), position, shift)
        keys, values = self.with_rotated_part(part, evicted.keys, evicted.values)
        return replace(evicted, keys=keys, values=values)

    def _put_back(self, ring: torch.Tensor | None, lost: Sequence[Evicted], log: UndoLog) -> None:
        """Write a rotated ring, if there is one, and the tokens that were lost; `log` is the log without them."""
        keys, values, sinks = self.buffers
        if ring is not None:
            self.rotated_part(keys, values)[:, :, self.reach.sink_size :].copy_(ring)
        for evicted in lost:
            evicted.put_back(keys, values, self.reach)
        if self.rotates and self.precision is None:
            self.sink_slots.copy_(sinks)
        self.log = log

    # ---- what Transformers asks of a layer

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return self.streams.columns

    def get_max_length(self, *args: Any, **kwargs: Any) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0


def _with_gradient_of(states: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Return `decoded`, whose last columns are `states` rounded, such that gradients pass the rounding."""
    if not (torch.is_grad_enabled() and states.requires_grad):
        return decoded
    past = decoded.shape[2] - states.shape[2]
    return torch.cat((decoded[:, :, :past], decoded[:, :, past:] + (states - states.detach())), dim=2)


def _zeros(like: torch.Tensor, size: int) -> torch.Tensor:
    """Return a buffer with `size` slots for states like `like` [batch, heads, n, head_dim]."""
    return torch.zeros(*like.shape[:2], size, like.shape[3], dtype=like.dtype, device=like.device)


def _column(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return one number for each row as [batch, 1] int64."""
    return torch.tensor(numbers, dtype=torch.long, device=device)[:, None]
