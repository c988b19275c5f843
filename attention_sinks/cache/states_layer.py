"""Layers that keep states which are not per token, as Transformers keeps them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer

from ..plan.reach import Reach
from .columns import picked, write_rows
from .layer import Layer, refuse_plain_model
from .precision import Forms
from .sink_layer import SinkLayer
from .stream_state import StreamState

STATE_TENSORS = ("conv_states", "recurrent_states")
STATE_FACTS = (
    *STATE_TENSORS,
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)


class StatesLayer(Layer, LinearAttentionLayer):
    """Convolution and recurrent states of a linear attention or state space layer.

    Attributes
    ----------
    before : dict or None
        During a call, what the states were before it, because Transformers changes them in place.
    """

    keeps_states = True
    before: dict[str, Any] | None = None
    _states_act: object = None

    def __init__(self, number_of_states: int, no_token: int = 0) -> None:
        """`no_token` is what states of token ids hold before the first token; all others hold zeros."""
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)
        self.no_token = no_token

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        with torch.inference_mode(False):
            LinearAttentionLayer.lazy_initialization(self, *args, **kwargs)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.before is None:
            refuse_plain_model()
        states: torch.Tensor = LinearAttentionLayer.update_conv_state(self, *args, **kwargs)
        return states

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.before is None:
            refuse_plain_model()
        states: torch.Tensor = LinearAttentionLayer.update_recurrent_state(self, *args, **kwargs)
        return states

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        states = (state for name in STATE_TENSORS for state in getattr(self, name).values())
        return tuple(state for state in states if state is not None)

    def begin(self) -> None:
        before = {name: dict(getattr(self, name)) for name in STATE_FACTS}
        for name in STATE_TENSORS:
            before[name] = {key: _copy(state) for key, state in getattr(self, name).items()}
        self.before = before

    def commit(self) -> None:
        self.before = None

    def discard(self) -> None:
        for name, facts in (self.before or {}).items():
            setattr(self, name, facts)
        self.before = None

    def reset(self) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=self.number_of_states)

    def select(self, indices: torch.Tensor, act: object) -> None:
        if self._states_act is act:
            return
        with torch.inference_mode(False):
            selected = [
                {
                    key: None if state is None else state.index_select(0, indices.to(state.device))
                    for key, state in getattr(self, name).items()
                }
                for name in STATE_TENSORS
            ]
        (self.conv_states, self.recurrent_states), self._states_act = selected, act

    def hold_rows(self, like: Layer, batch_size: int) -> None:
        assert isinstance(like, StatesLayer)  # the same layer of the same model
        for name in STATE_FACTS:
            setattr(self, name, dict(getattr(like, name)))
        self.dtype, self.device = like.dtype, like.device
        with torch.inference_mode(False):
            for name in STATE_TENSORS:
                states = getattr(self, name)
                for key, state in states.items():
                    if state is not None:
                        states[key] = state.new_full((batch_size, *state.shape[1:]), self._start(state))

    def replacing(self, rows: torch.Tensor, source: Layer | None, taken: torch.Tensor) -> list[Callable[[], None]]:
        changes = super().replacing(rows, source, taken)
        with torch.inference_mode(False), torch.no_grad():
            for name in STATE_TENSORS:
                for key, state in getattr(self, name).items():
                    if state is not None:
                        copies = self._start(state) if source is None else picked(getattr(source, name)[key], taken)
                        changes.append(partial(write_rows, state, rows, copies))
        return changes

    def _start(self, state: torch.Tensor) -> int:
        """Return what `state` holds before the first token."""
        return 0 if state.is_floating_point() else self.no_token


class SinkAndStatesLayer(SinkLayer, StatesLayer):
    """A layer with attention and states side by side, as in Falcon-H1.

    The methods of `SinkLayer` end with a call of the next class's method, which here is that of `StatesLayer`.
    """

    device: Any  # the two classes of Transformers give them no common type
    dtype: Any

    def __init__(
        self, reach: Reach, streams: StreamState, rotates: bool, number_of_states: int, precision: Forms | None = None
    ) -> None:
        SinkLayer.__init__(self, reach, streams, rotates, precision)
        StatesLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        if args:  # keys and values come by position, states by name
            SinkLayer.lazy_initialization(self, *args, **kwargs)
        else:
            StatesLayer.lazy_initialization(self, **kwargs)


def _copy(state: torch.Tensor | None) -> torch.Tensor | None:
    if state is None:
        return None
    with torch.inference_mode(False):
        return state.clone()
