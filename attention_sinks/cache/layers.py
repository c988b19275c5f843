"""Which layers a cache is made of."""

from __future__ import annotations

from ..architecture.setup import Setup
from ..positions.rotary import Rotary
from ..settings import SinkSettings
from .indexed_layer import IndexedLayer
from .sink_layer import SinkLayer
from .states_layer import EmptyLayer, SinkAndStatesLayer, StatesLayer
from .stream_state import StreamState

CacheLayer = SinkLayer | SinkAndStatesLayer | StatesLayer | EmptyLayer


def cache_layers(setup: Setup, settings: SinkSettings, streams: StreamState) -> list[CacheLayer]:
    """A layer of ours for each that has keys and values; Transformers' own for states that are not per token."""
    layers = []
    layout = setup.layer_table(settings)
    places = zip(setup.kinds, layout.reaches, layout.positions, strict=True)
    for kind, reach, position in places:
        turned = isinstance(position, Rotary) and position.rotates
        rotated = setup.architecture.rotated if turned else None
        if not kind.stores:
            layers.append(StatesLayer(kind.states) if kind.states else EmptyLayer())
        elif kind.states:
            layers.append(SinkAndStatesLayer(reach, streams, rotated, kind.states))
        else:
            layers.append((IndexedLayer if kind.indexed else SinkLayer)(reach, streams, rotated))
    return layers
