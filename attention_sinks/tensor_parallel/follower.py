"""`Follower`: does with its shard of a model, and with caches of its own, what the leading process says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..cache.fingerprint import fingerprint
from ..chat.decoding import device_of
from .commands import Command, Outcome, called_modules, seen_by, unpack
from .shards import as_bytes, from_bytes


class Follower:
    """A process that shares a model and follows another.

    Parameters
    ----------
    model : PreTrainedModel
        Its shard of the model, with attention sinks injected.
    reply : callable
        Sends something to the leading process.

    Attributes
    ----------
    caches : dict
        Its caches, by the numbers of those of the leading process.
    """

    def __init__(self, model: Any, reply: Callable[[bytes], Any]) -> None:
        self._reply = reply
        self.caches: dict[int, AttentionSinkKVCache] = {}
        self._model, self._modules = model, called_modules(model)

    @torch.no_grad()
    def obey(self, command: Command) -> Outcome:
        """Do what a command says; what it raises is part of what has come of it."""
        for number in command.forgotten:
            self.caches.pop(number, None)  # it was never made where an error came between
        caches: list[Any] = []
        arguments = unpack(command.arguments, self.caches, torch.device(device_of(self._model)), caches)
        try:
            made = self._do(command, *arguments)
        except Exception as error:
            return Outcome(repr(error), seen_by(caches))
        if isinstance(made, AttentionSinkKVCache):
            self.caches[command.number] = made
        return Outcome(None, seen_by(caches))

    def _do(self, command: Command, *arguments: Any) -> Any:
        """Do it, and return the cache that it makes, if it makes one."""
        if command.action == "new":
            return AttentionSinkKVCache(self._model, *arguments)
        if command.action == "call":
            name, args, kwargs = arguments
            return self._modules[name](*args, **kwargs)
        if command.action == "fingerprint_of":
            return fingerprint(setup_of(self._model).model, whole=True)
        if command.action == "from_snapshot":
            state, known = arguments
            return AttentionSinkKVCache.from_snapshot(self._model, from_bytes(command.part or b""), state, known)
        cache, *others = arguments
        if command.action == "snapshot":
            tensors, _ = cache.snapshot(*others)
            return self._reply(as_bytes(tensors))
        return getattr(cache, command.action)(*others)
