"""Taking the last columns of a cache's streams back."""

from __future__ import annotations

import operator

import torch
from transformers.cache_utils import Cache

from ..architecture.setup import setup_of
from ..settings import SinkSettings
from .history import COMMITTED_COLUMNS
from .sink_layer import SinkLayer
from .states_layer import EmptyLayer, StatesLayer
from .stream_state import StreamState


class CroppableCache(Cache):
    """What a sink cache can undo; `AttentionSinkKVCache` is one, and fills in its settings, streams and owner."""

    settings: SinkSettings
    streams: StreamState

    def activate_past_recording(self) -> None:
        """From now on keep what leaves the window, so that `crop` can take more than one token back from a full row.

        What is kept grows by the tokens fed between two crops, to those of 1,024 columns at most.
        """
        self._check_own_layers("activate_past_recording()")
        for layer in self._sink_layers:
            layer.activate_past_recording()

    def deactivate_past_recording(self) -> None:
        """Stop what `activate_past_recording` began and let go of what was kept for it."""
        for layer in self._sink_layers:
            layer.record_past = False
            layer.log.clear()
        self.streams.forget(0)

    @property
    def is_recording(self) -> bool:
        """Whether what leaves the window is kept for `crop`."""
        return all(layer.record_past for layer in self._sink_layers)

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last input columns back: the streams are as if they had never been fed.

        One column can be taken back once after every call, and any number while no row has more than S+W+1 tokens.
        More of a full row needs `activate_past_recording()` before they are fed, and then at most 1,024.

        Parameters
        ----------
        tokens_to_remove : int
            -n takes n columns back, padding included, as Transformers counts them. 0 takes nothing back and lets go of
            what was recorded, but for the last 64 columns.

        Raises
        ------
        ValueError
            For a positive number, or for more columns than can be taken back; the cache is then as it was.
        """
        columns = -operator.index(tokens_to_remove)
        if columns < 0:
            raise ValueError(
                f"crop({-columns}) is not supported: pass a negative number, crop({columns}) takes {-columns} back."
            )
        self._check_own_layers(f"crop({-columns})")
        if columns == 0:
            return self._forget()
        if columns > self.streams.returnable:
            raise ValueError(
                f"crop(-{columns}) asks for more than is kept: {self.streams.returnable} of the columns fed can be "
                "taken back now. Call activate_past_recording() before feeding what you may want to take back, or make "
                "a copy.deepcopy(cache) first."
            )
        before, trail = self.streams.rows, self.streams.trail
        after = before.back(trail.count(columns), max(layer.reach.cached_size for layer in self._sink_layers))
        positions = setup_of(self._owner()).layer_table(self.settings).positions
        with torch.no_grad():
            for layer, position in zip(self.layers, positions, strict=True):
                if isinstance(layer, SinkLayer):
                    layer.take_back(before, after, position)
        self.streams.back(after, columns)

    def _forget(self) -> None:
        """Keep what happened: nobody will ask for more than the last columns back."""
        if self.is_recording:
            for layer in self._sink_layers:
                layer.log.trim(COMMITTED_COLUMNS)
            self.streams.forget(COMMITTED_COLUMNS)

    @property
    def _sink_layers(self) -> list[SinkLayer]:
        return [layer for layer in self.layers if isinstance(layer, SinkLayer)]

    def _check_own_layers(self, action: str) -> None:
        for index, layer in enumerate(self.layers):
            if isinstance(layer, StatesLayer) or not isinstance(layer, (SinkLayer, EmptyLayer)):
                raise NotImplementedError(
                    f"{action} is not supported: layer {index} keeps a {type(layer).__name__}, whose state cannot be "
                    "taken back or stored; use copy.deepcopy(cache) instead."
                )
