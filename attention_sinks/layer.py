"""The keys and values of one attention layer: fixed buffers, a ring, sinks kept as they first were."""

from __future__ import annotations

import torch
from transformers.cache_utils import CacheLayerMixin

from .call import LayerCall
from .positions import Rotary
from .rows import Streams
from .step import BlockStep, Reach, TokenStep


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
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    sinks: torch.Tensor | None = None
    pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __init__(self, reach: Reach, streams: Streams, rotated: str | None = "keys") -> None:
        """`rotated`: whether positions are in the "keys", in the "values" (latent attention) or, None, in neither."""
        super().__init__()
        self.reach, self.streams, self.rotated = reach, streams, rotated

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        slots, sinks = self.reach.visible_size, self.reach.sink_size
        likes = [(key_states, slots), (value_states, slots)]
        likes += [(value_states, sinks)] if self.rotated == "values" else [(key_states, sinks if self.rotated else 0)]
        with torch.inference_mode(False):  # buffers made in inference mode could not be written outside of it
            self.keys, self.values, self.sinks = (
                torch.zeros(*like.shape[:2], size, like.shape[3], dtype=like.dtype, device=like.device)
                for like, size in likes
            )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, call: LayerCall):
        """Store the new keys and values and return the ones to attend to, in the order `call.step` describes."""
        if isinstance(call.step, TokenStep):
            return self._update_token(key_states, value_states, call.step)
        return self._update_block(key_states, value_states, call.step)

    def _update_token(self, key: torch.Tensor, value: torch.Tensor, step: TokenStep):
        """Write one slot in place and return the buffers themselves; the sinks have been turned before."""
        _write(self.keys, key, step)
        _write(self.values, value, step)
        return self.keys[:, :, : step.used], self.values[:, :, : step.used]

    def _update_block(self, key: torch.Tensor, value: torch.Tensor, step: BlockStep):
        """Lay out past and new; what the next call needs waits until the whole call is done."""
        if step.past is not None:
            key, value = (
                torch.cat([*past, new], dim=2) for past, new in zip(self._past(step), (key, value), strict=True)
            )
        with torch.no_grad():
            keys, values = take(key, step.kept), take(value, step.kept)
            self.pending = keys, values, self._sinks_of(keys, values)
        return key, value

    def _past(self, step: BlockStep) -> list[list[torch.Tensor]]:
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
        getattr(self, self.rotated)[:, :, : sinks.shape[2]] = sinks

    def rebase(self, rotary: Rotary, shift: torch.Tensor) -> None:
        """Turn the ring back by `shift` [R, 1], the way the base of their rows moves."""
        if self.pending or self.is_initialized:
            keys, values, sinks = self.pending or self.buffers
            states = {"keys": keys, "values": values}
            first, ring = states[self.rotated].split([self.reach.sink_size, self.reach.window_size + 1], dim=2)
            ring = rotary.pairing.rotate(ring, rotary.tables(-shift.to(ring.device)))
            states[self.rotated] = torch.cat([first, ring], dim=2)
            self.pending = states["keys"], states["values"], sinks

    def commit(self) -> None:
        """Write what waits into the buffers."""
        if self.pending is not None:
            if not self.is_initialized:
                self.lazy_initialization(*self.pending[:2])
            for buffer, states in zip(self.buffers, self.pending, strict=True):
                if states is not buffer:
                    buffer.copy_(states)
            self.pending = None

    def discard(self) -> None:
        """Forget what waits; the buffers are as they were before the call."""
        self.pending = None

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """Keys, values and sinks."""
        return (self.keys, self.values, self.sinks) if self.is_initialized else ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything this layer stores."""
        return self.buffers

    def get_seq_length(self) -> int:
        return self.streams.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def reset(self) -> None:
        self.keys = self.values = self.sinks = self.pending = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            with torch.inference_mode(False):
                self.keys, self.values, self.sinks = (
                    tensor.index_select(0, indices.to(tensor.device)) for tensor in self.buffers
                )


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`states` [batch, heads, n, d] at the columns `index` [R, m] of its third dimension."""
    if index.shape[0] == 1:
        return states.index_select(2, index[0])
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def _write(buffer: torch.Tensor, new: torch.Tensor, step: TokenStep) -> None:
    """Put the one new column of every active row into its slot; padding never enters the cache."""
    if isinstance(step.slot, int):
        buffer[:, :, step.slot] = new[:, :, 0]
        return
    index = step.slot[:, None, None, None].expand(-1, new.shape[1], 1, new.shape[3])
    if step.active is not None:
        new = torch.where(step.active[:, None, None, None], new, buffer.gather(2, index))
    buffer.scatter_(2, index, new)
