"""The keys and values of one attention layer: fixed buffers, a ring, sinks kept as they first were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ..plan.block import BlockPlan
from ..plan.counters import Counters
from ..plan.layer import LayerPlan
from ..plan.reach import Reach
from ..plan.token import TokenPlan
from ..positions.rotary import Rotary
from ..positions.schemes import Position
from .columns import take
from .layer import Layer
from .stream_state import StreamState
from .undo import NOWHERE, Evicted, UndoLog, evicted_by_block, evicted_by_token


class SinkLayer(Layer, CacheLayerMixin):
    """Sinks and window of one layer, for all rows of a batch.

    Attributes
    ----------
    keys, values : torch.Tensor
        [batch, num_key_value_heads, S+W+1, head_dim]: S sinks, then a ring of W+1 slots (see `plan`). Recent keys stay
        rotated where they were first rotated; the first S key slots hold the sinks as the last step saw them.
    sinks : torch.Tensor
        [batch, num_key_value_heads, S, head_dim], the rotated part of the sinks as it was at their own positions
        0..S-1. Never changed, so its rounding does not grow with the stream. Empty where nothing is rotated.
    sink_slots : torch.Tensor
        A view of the slots that hold the sinks as the last step saw them.
    pending : tuple of torch.Tensor or None
        During a call of several tokens: what the three will hold once the call is done. A call that breaks off leaves
        the buffers as they were.
    log : UndoLog
        While `record_past`: what has left the ring, for `take_back`.
    """

    is_compileable = False
    is_sliding = False
    record_past = False
    sinks: torch.Tensor | None = None
    sink_slots: torch.Tensor | None = None
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __init__(self, reach: Reach, streams: StreamState, rotated: str | None = "keys") -> None:
        """`rotated`: whether positions are in the "keys", in the "values" (latent attention) or, None, in neither."""
        CacheLayerMixin.__init__(self)
        self.reach, self.streams, self.rotated = reach, streams, rotated
        self.log = UndoLog()

    # ---- its buffers

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """Keys, values and sinks."""
        return (self.keys, self.values, self.sinks) if self.is_initialized else ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.buffers

    @property
    def undo_tensors(self) -> tuple[torch.Tensor, ...]:
        return self.log.tensors

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        slots, sinks = self.reach.visible_size, self.reach.sink_size
        likes = [(key_states, slots), (value_states, slots)]
        likes += [(value_states, sinks)] if self.rotated == "values" else [(key_states, sinks if self.rotated else 0)]
        with torch.inference_mode(False):
            self._hold(
                *(
                    torch.zeros(*like.shape[:2], size, like.shape[3], dtype=like.dtype, device=like.device)
                    for like, size in likes
                )
            )

    def _hold(self, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor) -> None:
        """These are the buffers from now on."""
        self.keys, self.values, self.sinks = keys, values, sinks
        with torch.inference_mode(False), torch.no_grad():
            self.sink_slots = (values if self.rotated == "values" else keys).narrow(2, 0, self.reach.sink_size)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        if keys.device.type == "cuda":  # a CUDA graph would copy what it does not know to stay where it is
            for buffer in self.buffers:
                torch._dynamo.mark_static_address(buffer)

    def restore(self, tensors: Sequence[torch.Tensor]) -> None:
        with torch.inference_mode(False):
            self._hold(*(tensor.clone() for tensor in tensors))

    def reset(self) -> None:
        self.keys = self.values = self.sinks = self.sink_slots = self.pending = None
        self.log.clear()
        self.is_initialized = False

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            with torch.inference_mode(False):
                self._hold(*(tensor.index_select(0, indices.to(tensor.device)) for tensor in self.buffers))
                self.log.select(indices.to(self.keys.device))

    # ---- a call

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer: LayerPlan | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values and return the ones to attend to, in the order `layer.plan` describes."""
        if not isinstance(layer, LayerPlan):
            raise RuntimeError(
                "a cache of attention sinks was updated by a model without them; call inject_attention_sinks(model), "
                "or give the model a cache of its own."
            )
        plan = layer.plan
        if isinstance(plan, BlockPlan):
            return self._update_block(key_states, value_states, plan)
        if self.record_past:
            with torch.inference_mode(False):
                self.log.add(evicted_by_token(self.keys, self.values, plan, self.reach))
        if isinstance(plan.slot, int):
            self.keys.narrow(2, plan.slot, 1).copy_(key_states)
            self.values.narrow(2, plan.slot, 1).copy_(value_states)
        else:
            self._write_rows(key_states, value_states, plan)
        if plan.used == self.reach.visible_size:
            return self.keys, self.values
        return self.keys[:, :, : plan.used], self.values[:, :, : plan.used]

    def _write_rows(self, key: torch.Tensor, value: torch.Tensor, plan: TokenPlan) -> None:
        """Write the new token of every row into a slot of its own."""
        _write(self.keys, key, plan.slot, plan.active)
        _write(self.values, value, plan.slot, plan.active)
        if plan.may_be_sink and (sinks := self.sinks.shape[2]):
            among = plan.slot < sinks if plan.active is None else (plan.slot < sinks) & plan.active
            _write(self.sinks, value if self.rotated == "values" else key, plan.slot.clamp(max=sinks - 1), among)

    def _update_block(
        self, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay out past and new; what the next call needs waits until the whole call is done."""
        before = self.pending or self.buffers
        if plan.past is not None:
            key, value = (
                torch.cat([*past, new], dim=2) for past, new in zip(self._past(plan), (key, value), strict=True)
            )
        with torch.inference_mode(False), torch.no_grad():  # buffers of inference mode cannot be written outside it
            keys, values = take(key, plan.kept), take(value, plan.kept)
            after = keys, values, self._sinks_of(keys, values).clone()
            if plan.idle is not None and plan.past is not None:
                idle = plan.idle[:, None, None, None]
                after = tuple(torch.where(idle, old, new) for old, new in zip(before, after, strict=True))
            self.pending = after
            if self.record_past:
                self.log.add(evicted_by_block(before[:2], (key, value), plan, self.reach))
        return key, value

    def _past(self, plan: BlockPlan) -> list[list[torch.Tensor]]:
        """What is cached, for keys and for values: the sinks as they first were, the window from old to new."""
        keys, values, sinks = self.pending or self.buffers
        first = {"keys": keys[:, :, : self.reach.sink_size], "values": values[:, :, : self.reach.sink_size]}
        if self.rotated:
            first[self.rotated] = sinks
        return [[first["keys"], take(keys, plan.past)], [first["values"], take(values, plan.past)]]

    def _sinks_of(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        states = values if self.rotated == "values" else keys
        return states[:, :, : self.reach.sink_size if self.rotated else 0]

    def rebase(self, position: Position, shift: torch.Tensor) -> None:
        if self.rotated and (self.pending or self.is_initialized):
            keys, values, sinks = self.pending or self.buffers
            states = {"keys": keys, "values": values}
            first, ring = states[self.rotated].split([self.reach.sink_size, self.reach.window_size + 1], dim=2)
            states[self.rotated] = torch.cat([first, _rotated(ring, position, -shift.to(ring.device))], dim=2)
            self.pending = states["keys"], states["values"], sinks

    def commit(self) -> None:
        if self.record_past:
            self.log.commit()
        elif self.log:  # Transformers has switched recording off
            self.log.clear()
        if self.pending is not None:
            if not self.is_initialized:
                self._hold(*self.pending)
            for buffer, states in zip(self.buffers, self.pending, strict=True):
                if states is not buffer:
                    buffer.copy_(states)
            self.pending = None

    def discard(self) -> None:
        if self.pending is None:  # a step writes in place
            for evicted in self.log.new:
                self._put_back(evicted)
        self.log.new.clear()
        self.pending = None

    # ---- taking tokens back

    def record(self, recording: bool) -> None:
        self.record_past = recording
        if not recording:
            self.log.clear()

    def trim(self, columns: int) -> None:
        self.log.trim(columns)

    def take_back(self, before: Counters, after: Counters, position: Position) -> None:
        if not self.is_initialized:
            return
        seen, origin = (
            torch.tensor(counter, dtype=torch.long, device=self.keys.device)[:, None]
            for counter in (after.seen, after.origin)
        )
        rotated, sinks = self.values if self.rotated == "values" else self.keys, self.reach.sink_size
        if self.rotated and before.origin != after.origin:
            ring = rotated[:, :, sinks:]
            moved_by = torch.tensor(before.origin, dtype=torch.long, device=ring.device)[:, None] - origin
            ring.copy_(_rotated(ring, position, moved_by))
        for evicted in self.log.take_back(seen - self.reach.window_size - 1):
            evicted = replace(evicted, positions=evicted.positions.masked_fill(evicted.positions >= seen, NOWHERE))
            shift = evicted.origin - origin
            if self.rotated and bool(shift.any()):
                moved = _rotated(getattr(evicted, self.rotated), position, shift)
                evicted = replace(evicted, **{self.rotated: moved})
            self._put_back(evicted)
        if self.rotated:
            rotated[:, :, :sinks] = self.sinks

    def _put_back(self, evicted: Evicted) -> None:
        """Write evicted tokens into their slots."""
        positions = evicted.positions.expand(evicted.keys.shape[0], -1)
        row, column = (positions >= 0).nonzero(as_tuple=True)
        slot = self.reach.slot_of(positions[row, column])
        self.keys[row, :, slot] = evicted.keys[row, :, column]
        self.values[row, :, slot] = evicted.values[row, :, column]

    # ---- what Transformers asks of a layer

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return self.streams.columns

    def get_max_length(self, *args: Any, **kwargs: Any) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0


class IndexedLayer(SinkLayer):
    """A layer whose keys an indexer selects, in models that stream as long as it selects all of them.

    The indexer does not run: the positions of all tokens so far, which Transformers leaves here, are not kept.
    """

    @property
    def indexer_position_ids(self) -> None:
        return None

    @indexer_position_ids.setter
    def indexer_position_ids(self, position_ids: torch.Tensor) -> None: ...


def _rotated(states: torch.Tensor, rotary: Rotary, shift: torch.Tensor) -> torch.Tensor:
    """`states` [batch, heads, n, head_dim] rotated by `shift` [R, 1]."""
    return rotary.pairing.rotate(states, rotary.tables(shift))


def _write(buffer: torch.Tensor, new: torch.Tensor, slot: torch.Tensor, active: torch.Tensor | None) -> None:
    """Put the one new column of every active row into its slot; padding never enters the cache."""
    new = new[:, :, 0]
    rows = torch.arange(new.shape[0], dtype=torch.long, device=new.device)
    if active is not None:
        new = torch.where(active[:, None, None], new, buffer[rows, :, slot])
    buffer[rows, :, slot] = new
