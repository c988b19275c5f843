"""Conversations that begin alike start from a copy of what one of them has read."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict

import torch

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..chat.decoding import device_of
from ..versions import CACHE
from .numbers import Meter
from .stepper import Stepper
from .talk import Talk

LEAST = 16
"""A shorter beginning is read anew: copying a cache costs about as much as reading some tokens."""


class Beginnings:
    """Caches that have read what stands before the words of a first message, such as a system prompt.

    Parameters
    ----------
    most : int
        How many are kept, those used last.
    meter : Meter
        Told how many tokens are read, and how many need not be.
    """

    def __init__(self, most: int, meter: Meter) -> None:
        self.most, self.meter = most, meter
        self._known: OrderedDict[tuple[int, ...], asyncio.Future[AttentionSinkKVCache]] = OrderedDict()

    async def begin(self, talk: Talk, prompt: list[int], stepper: Stepper) -> None:
        """Let a conversation that has not begun start after its prefix, if it is long enough."""
        prefix, stream = talk.prefix, talk.stream
        has_prefix = LEAST <= len(prefix) < len(prompt) and prompt[: len(prefix)] == list(prefix)
        if not has_prefix or not self.most or not stream.can_read_in_pieces():
            return
        while (known := self._known.get(prefix)) is not None:
            try:
                cache = await asyncio.shield(known)
            except Exception:  # who read it has failed, and it is known no more
                continue
            self._known.move_to_end(prefix)
            self.meter.add("tokens_shared", len(prefix))
            return stream.begin_from(copy.deepcopy(cache), len(prefix))
        cache = await self._read(talk, stepper)
        self.meter.add("tokens_read", len(prefix))
        stream.begin_from(copy.deepcopy(cache), len(prefix))

    async def _read(self, talk: Talk, stepper: Stepper) -> AttentionSinkKVCache:
        """Read a prefix while others who need it wait, and keep it for those who will."""
        known: asyncio.Future[AttentionSinkKVCache] = asyncio.get_running_loop().create_future()
        self._known[talk.prefix] = known
        try:
            cache = await _fed(talk, stepper)
        except BaseException as error:
            del self._known[talk.prefix]
            known.set_exception(RuntimeError(f"the beginning could not be read: {error!r}"))
            known.exception()  # nobody may have waited for it
            raise
        known.set_result(cache)
        while len(self._known) > self.most:
            self._known.popitem(last=False)
        return cache


async def _fed(talk: Talk, stepper: Stepper) -> AttentionSinkKVCache:
    """Return a cache that has been fed the prefix of `talk`."""
    cache: AttentionSinkKVCache = talk.stream.cache.new_empty()
    base = setup_of(talk.chat.model).model  # nobody needs logits of a prefix
    ids = torch.tensor([talk.prefix], dtype=torch.long, device=device_of(talk.chat.model))
    read = 0

    @torch.no_grad()
    def piece() -> int:
        end = min(read + stepper.piece_size(), ids.shape[1])
        base(input_ids=ids[:, read:end], use_cache=True, **{CACHE: cache})
        return end - read

    while read < ids.shape[1]:
        read += await stepper.read(piece)
    return cache
