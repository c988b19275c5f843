"""MiniMax has linear layers, for whose states it asks a cache class of its own."""

from __future__ import annotations

from typing import Any

from ..architecture.spec import Architecture
from ..streaming.bound_cache import BoundCache


def _bound_cache(*arguments: Any) -> BoundCache:
    from .minimax_cache import BoundMiniMaxCache  # with the first call, because it loads the modelling code of MiniMax

    return BoundMiniMaxCache(*arguments)


ARCHITECTURE = Architecture("MiniMaxAttention", bound_cache=_bound_cache)
