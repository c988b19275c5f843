"""Layers that keep no key per token: Transformers' own states, made so that a call that breaks off changes nothing."""

from __future__ import annotations

import torch
from transformers.cache_utils import LinearAttentionLayer

from ..plan.reach import Reach
from .sink_layer import SinkLayer
from .stream_state import StreamState


class StatesLayer(LinearAttentionLayer):
    """Convolution and recurrent states of a linear attention or state space layer, as Transformers keeps them.

    Attributes
    ----------
    before : dict or None
        During a call: what the states were before it.
    """

    before: dict | None = None

    def lazy_initialization(self, *args, **kwargs) -> None:
        with torch.inference_mode(False):
            super().lazy_initialization(*args, **kwargs)

    def remember(self) -> None:
        """Before a call: Transformers changes states in place."""
        self.before = {name: dict(getattr(self, name)) for name in STATE_FACTS}
        for name in STATE_TENSORS:
            self.before[name] = {key: _copy(state) for key, state in getattr(self, name).items()}

    def commit(self) -> None:
        self.before = None

    def discard(self) -> None:
        for name, facts in (self.before or {}).items():
            setattr(self, name, facts)
        self.before = None

    def reset(self) -> None:
        super().__init__(number_of_states=self.number_of_states)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        with torch.inference_mode(False):
            LinearAttentionLayer.reorder_cache(self, indices)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Everything this layer stores."""
        states = (state for name in STATE_TENSORS for state in getattr(self, name).values())
        return tuple(state for state in states if state is not None)


STATE_TENSORS = ("conv_states", "recurrent_states")
STATE_FACTS = (
    *STATE_TENSORS,
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)


def _copy(state: torch.Tensor | None) -> torch.Tensor | None:
    if state is None:
        return None
    with torch.inference_mode(False):
        return state.clone()


class SinkAndStatesLayer(SinkLayer, StatesLayer):
    """A layer with attention and states side by side, as in Falcon-H1."""

    def __init__(self, reach: Reach, streams: StreamState, rotated: str | None, states: int) -> None:
        SinkLayer.__init__(self, reach, streams, rotated)
        StatesLayer.__init__(self, number_of_states=states)

    def lazy_initialization(self, *args, **kwargs) -> None:
        (SinkLayer if args else StatesLayer).lazy_initialization(self, *args, **kwargs)

    def commit(self) -> None:
        SinkLayer.commit(self)
        StatesLayer.commit(self)

    def discard(self) -> None:
        SinkLayer.discard(self)
        StatesLayer.discard(self)

    def reset(self) -> None:
        SinkLayer.reset(self)
        StatesLayer.reset(self)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        SinkLayer.batch_select_indices(self, indices)
        StatesLayer.batch_select_indices(self, indices)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return SinkLayer.tensors.fget(self) + StatesLayer.tensors.fget(self)


class EmptyLayer:
    """A layer without a cache of its own: it has no attention, or reads the keys and values of an earlier one."""

    is_croppable = True
    tensors: tuple[torch.Tensor, ...] = ()

    def commit(self) -> None: ...

    def discard(self) -> None: ...

    def reset(self) -> None: ...

    def batch_select_indices(self, indices: torch.Tensor) -> None: ...
