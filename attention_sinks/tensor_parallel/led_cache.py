"""`LedCache`: the cache of a process that leads. Those that follow have one like it, with their own heads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn, Protocol, cast

import torch
from torch import nn

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.fingerprint import fingerprint
from ..settings import CacheDtype
from .shards import Tensors, as_bytes, cut_layers, from_bytes, joined, part_of


class Leads(Protocol):
    """Tells the processes that follow what to do."""

    @property
    def count(self) -> int:
        """How many processes share the model."""
        ...

    def leads(self, action: str, *arguments: Any, parts: Sequence[bytes] = ()) -> AbstractContextManager[int]:
        """Let the others do what the block does here; it gets the number of the cache that it makes, if any.

        `parts` has something for each of the others.
        """
        ...

    def replies(self) -> list[bytes]:
        """Return what the others answer, within the block."""
        ...

    def forget(self, number: int) -> None:
        """Let the others drop a cache."""
        ...


class LedCache(AttentionSinkKVCache):
    """A cache that the processes that follow have as well. Whatever changes it here, changes theirs.

    Parameters
    ----------
    model, attention_sink_size, attention_sink_window_size, attention_sink_cache_dtype
        As for `AttentionSinkKVCache`.

    Attributes
    ----------
    leader : Leads
        Tells them. Each leader has a class of its own, `Leader.cache_class`.
    number : int
        By which the others know the cache.
    """

    leader: ClassVar[Leads]

    def __init__(
        self,
        model: nn.Module,
        attention_sink_size: int | None = None,
        attention_sink_window_size: int | None = None,
        attention_sink_cache_dtype: CacheDtype | torch.dtype | None = None,
    ) -> None:
        given = attention_sink_size, attention_sink_window_size, attention_sink_cache_dtype
        with self.leader.leads("new", *given) as number:
            super().__init__(model, *given)
            self._known_as(number)

    def _known_as(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, self.leader.forget, number).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionSinkKVCache:
        with self.leader.leads("__deepcopy__", self, {}) as number:
            fork = cast(LedCache, super().__deepcopy__(memo))
            fork._known_as(number)
        return fork

    def take(self, row: int) -> AttentionSinkKVCache:
        with self.leader.leads("take", self, row) as number:
            made = cast(LedCache, super().take(row))
            made._known_as(number)
        return made

    def put(self, row: int, other: AttentionSinkKVCache) -> None:
        with self.leader.leads("put", self, row, other):
            super().put(row, other)

    def reset(self) -> None:
        with self.leader.leads("reset", self):
            super().reset()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        with self.leader.leads("batch_select_indices", self, indices):
            super().batch_select_indices(indices)

    def clear_rows(self, rows: Iterable[int]) -> None:
        rows = list(rows)
        with self.leader.leads("clear_rows", self, rows):
            super().clear_rows(rows)

    def activate_past_recording(self) -> None:
        with self.leader.leads("activate_past_recording", self):
            super().activate_past_recording()

    def deactivate_past_recording(self) -> None:
        with self.leader.leads("deactivate_past_recording", self):
            super().deactivate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        with self.leader.leads("crop", self, tokens_to_remove):
            super().crop(tokens_to_remove)

    @classmethod
    def stack(cls, caches: Sequence[AttentionSinkKVCache]) -> NoReturn:
        raise NotImplementedError("caches of a model that several processes share cannot be stacked; put() rows.")

    # ---- saving: files hold all heads, so that any number of processes can go on from them

    def check_can_be_saved(self, action: str) -> None:
        super().check_can_be_saved(action)
        cut_layers(self._owner())

    @classmethod
    def fingerprint_of(cls, model: nn.Module) -> dict[str, Any]:
        with cls.leader.leads("fingerprint_of"):
            return fingerprint(setup_of(model).model, whole=True)

    def snapshot(self, known: dict[str, Any] | None = None) -> tuple[Tensors, dict[str, Any]]:
        known, cut = self.fingerprint_of(self._owner()) if known is None else known, cut_layers(self._owner())
        with self.leader.leads("snapshot", self, {}):
            own, state = super().snapshot(known)
            others = [from_bytes(data) for data in self.leader.replies()]
        return joined([own, *others], cut), state

    @classmethod
    def from_snapshot(
        cls, model: nn.Module, tensors: Tensors, state: dict[str, Any], known: dict[str, Any] | None = None
    ) -> AttentionSinkKVCache:
        known, cut = cls.fingerprint_of(model) if known is None else known, cut_layers(model)
        own, *others = (part_of(tensors, cut, rank, cls.leader.count) for rank in range(cls.leader.count))
        with cls.leader.leads("from_snapshot", state, known, parts=[as_bytes(part) for part in others]) as number:
            made = cast(LedCache, super().from_snapshot(model, own, state, known))
            made._known_as(number)
        return made
