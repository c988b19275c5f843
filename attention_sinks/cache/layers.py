"""Which layers a cache is made of."""

from __future__ import annotations

from ..architecture.setup import Injection
from ..positions.rotary import Rotary
from ..settings import SinkSettings
from .indexed_layer import IndexedLayer
from .sink_layer import SinkLayer
from .states_layer import EmptyLayer, SinkAndStatesLayer, StatesLayer
from .stream_state import Streams

CacheLayer = SinkLayer | SinkAndStatesLayer | StatesLayer | EmptyLayer


def cache_layers(injection: Injection, settings: SinkSettings, streams: Streams) -> list[CacheLayer]:
    """A layer of ours for each that has keys and values; Transformers' own for states that are not per token."""
    layers = []
    layout = injection.layout(settings)
    places = zip(injection.kinds, layout.reaches, layout.positions, strict=True)
    for kind, reach, position in places:
        turned = isinstance(position, Rotary) and position.turned
        rotated = injection.architecture.rotated if turned else None
        if not kind.stores:
            layers.append(StatesLayer(kind.states) if kind.states else EmptyLayer())
        elif kind.states:
            layers.append(SinkAndStatesLayer(reach, streams, rotated, kind.states))
        else:
            layers.append((IndexedLayer if kind.indexed else SinkLayer)(reach, streams, rotated))
    return layers
