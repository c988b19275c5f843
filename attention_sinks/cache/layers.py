"""Which layers a cache is made of."""

from __future__ import annotations

from ..architecture.setup import Setup
from ..plan.table import LayerTable
from ..positions.rotary import Rotary
from .layer import EmptyLayer, Layer
from .sink_layer import IndexedLayer, SinkLayer
from .states_layer import SinkAndStatesLayer, StatesLayer
from .stream_state import StreamState


def cache_layers(setup: Setup, table: LayerTable, streams: StreamState) -> list[Layer]:
    """A layer of ours for each that has keys and values; Transformers' own for states that are not per token."""
    layers: list[Layer] = []
    for kind, reach, position in zip(setup.kinds, table.reaches, table.positions, strict=True):
        rotates = isinstance(position, Rotary) and position.rotates
        rotated = setup.architecture.rotated if rotates else None
        if not kind.stores or reach is None:
            layers.append(StatesLayer(kind.states) if kind.states else EmptyLayer())
        elif kind.states:
            layers.append(SinkAndStatesLayer(reach, streams, rotated, kind.states))
        else:
            layers.append((IndexedLayer if kind.indexed else SinkLayer)(reach, streams, rotated))
    return layers
