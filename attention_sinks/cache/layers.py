"""The choice of a class for each layer of a cache, and classes for particular kinds of layers."""

from __future__ import annotations

import torch

from ..architecture.layer_kinds import LayerKind
from ..architecture.setup import Setup
from ..plan.table import LayerTable
from ..positions.schemes import rotates
from ..settings import CacheDtype
from .columns import KeysValues
from .layer import EmptyLayer, Layer
from .precision import FORMS, Form
from .sink_layer import SinkLayer
from .states_layer import SinkAndStatesLayer, StatesLayer
from .stream_state import StreamState


class LatentLayer(SinkLayer):
    """A layer of latent attention, whose values hold the rotated part of its keys."""

    def rotated_part(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values

    def with_rotated_part(self, part: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        return keys, part

    @property
    def part_form(self) -> Form:
        assert self.precision is not None
        return self.precision[1]


class IndexedLayer(SinkLayer):
    """A layer whose keys an indexer selects, in models that stream as long as it selects all of them.

    The indexer does not run. Transformers leaves the positions of all tokens so far here, which are not kept.
    """

    @property
    def indexer_position_ids(self) -> None:
        return None

    @indexer_position_ids.setter
    def indexer_position_ids(self, position_ids: torch.Tensor) -> None: ...


def cache_layers(setup: Setup, table: LayerTable, streams: StreamState, cache_dtype: CacheDtype) -> list[Layer]:
    """Return the layers of a cache for the model of `setup`, one for each of the model's own."""
    precision = FORMS.get(cache_dtype)
    latent = setup.architecture.rotated == "values"
    layers: list[Layer] = []
    for kind, reach, position in zip(setup.kinds, table.reaches, table.positions, strict=True):
        if reach is None or not kind.stores:
            layers.append(StatesLayer(kind.states, kind.no_token) if kind.states else EmptyLayer())
        elif kind.states:
            assert not latent  # no architecture has latent attention and states in one layer
            layers.append(SinkAndStatesLayer(reach, streams, rotates(position), kind.states, precision))
        else:
            layers.append(_sink_layer(kind, latent)(reach, streams, rotates(position), precision))
    return layers


def _sink_layer(kind: LayerKind, latent: bool) -> type[SinkLayer]:
    if latent:
        return LatentLayer
    return IndexedLayer if kind.indexed else SinkLayer
