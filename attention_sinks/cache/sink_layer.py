"""The keys and values of one attention layer: fixed buffers, a ring, sinks kept as they first were."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers.cache_utils import CacheLayerMixin

from ..plan.call import LayerPlan
from ..plan.counters import Counters
from ..plan.reach import BlockPlan, Reach, TokenPlan
from ..positions.rotary import Rotary
from .columns import take
from .stream_state import StreamState
from .undo import NOWHERE, Evicted, UndoLog, evicted_by_block, evicted_by_token


class SinkLayer(CacheLayerMixin):
    """Sinks and window of one layer, for all rows of a batch.

    Attributes
    ----------
    keys, values : torch.Tensor
        [batch, num_key_value_heads, S+W+1, head_dim]: S sinks, then a ring of W+1 slots (see `step`). Recent keys stay
        rotated where they were first rotated; the first S key slots hold the sinks as the last single step saw them.
    sinks : torch.Tensor
        [batch, num_key_value_heads, S, head_dim], the rotated part of the sinks as it was at their own positions
        0..S-1. Never changed, so its rounding does not grow with the stream. Empty where nothing is rotated.
    pending : tuple of torch.Tensor or None
        During a call of several tokens: what the three will hold once the call is done. A call that breaks off leaves
        the buffers as they were.
    log : UndoLog
        While `record_past` is on: what has left the ring, for `take_back`.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    record_past = False
    sinks: torch.Tensor | None = None
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __init__(self, reach: Reach, streams: StreamState, rotated: str | None = "keys") -> None:
        """`rotated`: whether positions are in the "keys", in the "values" (latent attention) or, None, in neither."""
        super().__init__()
        self.reach, self.streams, self.rotated = reach, streams, rotated
        self.log = UndoLog()

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
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        if keys.device.type == "cuda":  # a CUDA graph would copy what it does not know to stay where it is
            for buffer in self.buffers:
                torch._dynamo.mark_static_address(buffer)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, call: LayerPlan | None = None, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values and return the ones to attend to, in the order `call.step` describes."""
        if call is None:
            raise RuntimeError(
                "a cache of attention sinks was updated by a model without them; call inject_attention_sinks(model), "
                "or give the model a cache of its own."
            )
        if isinstance(call.step, TokenPlan):
            return self._update_token(key_states, value_states, call.step)
        return self._update_block(key_states, value_states, call.step)

    def _update_token(self, key: torch.Tensor, value: torch.Tensor, step: TokenPlan):
        """Write one slot in place and return the buffers themselves; the sinks have been turned before."""
        if self.record_past:
            with torch.inference_mode(False):
                self.log.add(evicted_by_token(self.keys, self.values, step, self.reach))
        _write(self.keys, key, step.slot, step.active)
        _write(self.values, value, step.slot, step.active)
        if step.may_be_sink and (sinks := self.sinks.shape[2]):
            among = step.slot < sinks if step.active is None else (step.slot < sinks) & step.active
            _write(self.sinks, value if self.rotated == "values" else key, step.slot.clamp(max=sinks - 1), among)
        return self.keys[:, :, : step.used], self.values[:, :, : step.used]

    def _update_block(self, key: torch.Tensor, value: torch.Tensor, step: BlockPlan):
        """Lay out past and new; what the next call needs waits until the whole call is done."""
        before = self.pending or self.buffers
        if step.past is not None:
            key, value = (
                torch.cat([*past, new], dim=2) for past, new in zip(self._past(step), (key, value), strict=True)
            )
        with torch.inference_mode(False), torch.no_grad():  # buffers of inference mode cannot be written outside it
            keys, values = take(key, step.kept), take(value, step.kept)
            after = keys, values, self._sinks_of(keys, values).clone()
            if step.idle is not None and step.past is not None:
                idle = step.idle[:, None, None, None]
                after = tuple(torch.where(idle, old, new) for old, new in zip(before, after, strict=True))
            self.pending = after
            if self.record_past:
                self.log.add(evicted_by_block(before[:2], (key, value), step, self.reach))
        return key, value

    def _past(self, step: BlockPlan) -> list[list[torch.Tensor]]:
        """What is cached, for keys and for values: the sinks as they first were, the window from old to new."""
        keys, values, sinks = self.pending or self.buffers
        first = {"keys": keys[:, :, : self.reach.sink_size], "values": values[:, :, : self.reach.sink_size]}
        if self.rotated:
            first[self.rotated] = sinks
        return [[first["keys"], take(keys, step.past)], [first["values"], take(values, step.past)]]

    def _sinks_of(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        states = values if self.rotated == "values" else keys
        return states[:, :, : self.reach.sink_size if self.rotated else 0]

    def turned(self, sinks: torch.Tensor) -> None:
        """Before a single step: the sinks where its query must see them."""
        getattr(self, self.rotated).index_copy_(2, torch.arange(sinks.shape[2], device=sinks.device), sinks)

    def rebase(self, rotary: Rotary, shift: torch.Tensor) -> None:
        """Turn the ring back by `shift` [R, 1], the way the base of their rows moves."""
        if self.pending or self.is_initialized:
            keys, values, sinks = self.pending or self.buffers
            states = {"keys": keys, "values": values}
            first, ring = states[self.rotated].split([self.reach.sink_size, self.reach.window_size + 1], dim=2)
            states[self.rotated] = torch.cat([first, _rotated(ring, rotary, -shift.to(ring.device))], dim=2)
            self.pending = states["keys"], states["values"], sinks

    def commit(self) -> None:
        """Write what waits into the buffers."""
        if self.record_past:
            self.log.commit()
        elif self.log:
            self.log.clear()
        if self.pending is not None:
            if not self.is_initialized:
                self._hold(*self.pending)
            for buffer, states in zip(self.buffers, self.pending, strict=True):
                if states is not buffer:
                    buffer.copy_(states)
            self.pending = None

    def discard(self) -> None:
        """Forget what waits; the buffers are as they were before the call."""
        if self.pending is None:  # a single step writes in place
            for evicted in self.log.new:
                self._put_back(evicted)
        self.log.new.clear()
        self.pending = None

    def activate_past_recording(self) -> None:
        """From now on keep what leaves the ring."""
        self.record_past = True

    def take_back(self, before: Counters, after: Counters, rotary: Rotary | None) -> None:
        """Take the streams from `before` back to `after`, where they stood some columns ago."""
        if not self.is_initialized:
            return
        seen, base = (torch.tensor(counter, device=self.keys.device)[:, None] for counter in (after.seen, after.base))
        turned, sinks = getattr(self, self.rotated or "keys"), self.reach.sink_size
        if self.rotated and before.base != after.base:
            ring = turned[:, :, sinks:]
            ring.copy_(_rotated(ring, rotary, torch.tensor(before.base, device=ring.device)[:, None] - base))
        for evicted in self.log.take_back(seen - self.reach.window_size - 1):
            evicted = replace(evicted, positions=evicted.positions.masked_fill(evicted.positions >= seen, NOWHERE))
            shift = evicted.base - base
            if self.rotated and bool(shift.any()):
                moved = _rotated(getattr(evicted, self.rotated), rotary, shift)
                evicted = replace(evicted, **{self.rotated: moved})
            self._put_back(evicted)
        if self.rotated:
            turned[:, :, :sinks] = self.sinks

    def _put_back(self, evicted: Evicted) -> None:
        """Write evicted tokens into their slots."""
        positions = evicted.positions.expand(evicted.keys.shape[0], -1)
        row, column = (positions >= 0).nonzero(as_tuple=True)
        slot = self.reach.slot_of(positions[row, column])
        self.keys[row, :, slot] = evicted.keys[row, :, column]
        self.values[row, :, slot] = evicted.values[row, :, column]

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """Keys, values and sinks."""
        return (self.keys, self.values, self.sinks) if self.is_initialized else ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything this layer stores."""
        return self.buffers

    def restore(self, tensors: list[torch.Tensor]) -> None:
        """Hold copies of `tensors`, which a layer like this one stored."""
        with torch.inference_mode(False):
            self._hold(*(tensor.clone() for tensor in tensors))

    def get_seq_length(self, *args, **kwargs) -> int:
        return self.streams.columns

    def get_max_length(self, *args, **kwargs) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, *args, **kwargs) -> tuple[int, int]:
        return query_length, 0

    def reset(self) -> None:
        self.keys = self.values = self.sinks = self.pending = None
        self.log.clear()
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            with torch.inference_mode(False):
                self._hold(*(tensor.index_select(0, indices.to(tensor.device)) for tensor in self.buffers))
                self.log.select(indices.to(self.keys.device))


def _rotated(states: torch.Tensor, rotary: Rotary, shift: torch.Tensor) -> torch.Tensor:
    """`states` [batch, heads, n, head_dim] turned by `shift` [R, 1]."""
    return rotary.pairing.rotate(states, rotary.tables(shift))


def _write(buffer: torch.Tensor, new: torch.Tensor, slot: int | torch.Tensor, active: torch.Tensor | None) -> None:
    """Put the one new column of every active row into its slot; padding never enters the cache."""
    new = new[:, :, 0]
    if isinstance(slot, int):
        buffer[:, :, slot] = new
        return
    rows = torch.arange(new.shape[0], device=new.device)
    if active is not None:
        new = torch.where(active[:, None, None], new, buffer[rows, :, slot])
    buffer[rows, :, slot] = new
