"""A layer whose keys an indexer selects, in models that stream as long as it selects all of them."""

from __future__ import annotations

from .sink_layer import SinkLayer


class IndexedLayer(SinkLayer):
    """Its indexer does not run: the positions of all tokens so far, which Transformers leaves here, are not kept."""

    @property
    def indexer_position_ids(self) -> None:
        return None

    @indexer_position_ids.setter
    def indexer_position_ids(self, position_ids) -> None: ...
