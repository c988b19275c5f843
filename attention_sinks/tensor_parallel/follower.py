"""`Follower`: does with its shard of a model, and with caches of its own, what the leading process says."""

from __future__ import annotations

from typing import Any

import torch

from ..cache.cache import AttentionSinkKVCache
from ..chat.decoding import device_of
from .commands import Command, Outcome, called_modules, seen_by, unpack


class Follower:
    """A process that shares a model and follows another.

    Parameters
    ----------
    model : PreTrainedModel
        Its shard of the model, with attention sinks injected.

    Attributes
    ----------
    caches : dict
        Its caches, by the numbers of those of the leading process.
    """

    def __init__(self, model: Any) -> None:
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
            made = self._do(command.action, *arguments)
        except Exception as error:
            return Outcome(repr(error), seen_by(caches))
        if isinstance(made, AttentionSinkKVCache):
            self.caches[command.number] = made
        return Outcome(None, seen_by(caches))

    def _do(self, action: str, *arguments: Any) -> Any:
        """Do it, and return the cache that it makes, if it makes one."""
        if action == "new":
            return AttentionSinkKVCache(self._model, *arguments)
        if action == "call":
            name, args, kwargs = arguments
            self._modules[name](*args, **kwargs)
            return None
        cache, *others = arguments
        return getattr(cache, action)(*others)
