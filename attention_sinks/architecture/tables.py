"""The tables that a setup has made. Those of caches that live are kept, and a bounded number of others."""

from __future__ import annotations

import copy
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from ..plan.table import LayerTable

TableKey = tuple[int, int, str, int]
"""S, W, prefill and number of layers."""

SPARE_TABLES = 64
"""How many tables are kept at most, beside those that are held."""


class Hold:
    """As long as a cache and its forks have this, their table is not forgotten."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Hold:
        return self


class Tables:
    """The tables of one model, also when caches of many sizes come and go in several threads.

    Attributes
    ----------
    known : dict
        The tables that need not be made. Only this class writes to it; anybody may read it.
    """

    def __init__(self) -> None:
        self.known: dict[TableKey, LayerTable] = {}
        self._holds: WeakValueDictionary[TableKey, Hold] = WeakValueDictionary()
        self._lock = Lock()

    def add(self, key: TableKey, table: LayerTable) -> LayerTable:
        """Keep `table` and return it, or the one that another thread has kept before. The oldest spare ones go."""
        with self._lock:
            table = self.known.setdefault(key, table)
            surplus = len(self.known) - SPARE_TABLES
            if surplus > 0:
                spare = [old for old in self.known if old not in self._holds and old != key]
                for old in spare[:surplus]:
                    del self.known[old]
        return table

    def hold(self, key: TableKey) -> Hold:
        """Return what a cache must have as long as it lives."""
        with self._lock:
            return self._holds.setdefault(key, Hold())

    def clear(self) -> None:
        """Forget all tables, those that are held, too: they are made anew."""
        with self._lock:
            self.known.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tables:
        own = memo[id(self)] = Tables()
        own.known.update(copy.deepcopy(self.known, memo))
        return own

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle nothing: tables are made again."""
        return Tables, ()
