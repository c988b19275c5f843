"""Who is served when: in every round each conversation that answers makes a step, and some of the messages are read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import torch

from ..cache.cache import AttentionSinkKVCache
from ..chat.stream import PIECE
from .batch import Batch, Seat

Piece = Callable[[], int]
"""It reads a piece of a message and returns how many tokens that were."""


class Stepper:
    """Run the model for all turns, in one event loop.

    A round reads at most `chunk_size` tokens of messages, those of the message that has waited longest first, and then
    makes one step for all that answer. So nobody waits for a long text, and a long text does not wait for ever. While
    nobody answers, a round reads up to 256 tokens.

    Parameters
    ----------
    batch : Batch
        The rows of those who answer.
    chunk_size : int
        How many tokens of messages are read between two steps, at most.
    """

    def __init__(self, batch: Batch, chunk_size: int) -> None:
        self.batch, self.chunk_size = batch, chunk_size
        self._pieces: deque[tuple[Piece, asyncio.Future[int]]] = deque()
        self._tokens: dict[Seat, tuple[int, Mapping[str, Any], asyncio.Future[torch.Tensor]]] = {}
        self._work = asyncio.Event()
        self._budget = 0

    # ---- for a turn

    def piece_size(self) -> int:
        """Return how many tokens the piece that is read now may have."""
        return max(self._budget, 1)

    async def read_all(self, pieces: Iterator[Any]) -> None:
        """Run an iterator to its end, of which each item is some work of the model that feeds a piece of a message."""
        has_more = True

        def piece() -> int:
            nonlocal has_more
            has_more = next(pieces, piece) is not piece
            return PIECE if has_more else 0

        while has_more:
            await self.read(piece)

    async def read(self, piece: Piece) -> int:
        """Have a piece read when it is its turn; return how many tokens it had."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pieces.append((piece, done))
        self._work.set()
        return await done

    @asynccontextmanager
    async def seat(
        self, cache: AttentionSinkKVCache, give_back: Callable[[AttentionSinkKVCache], None]
    ) -> AsyncIterator[Seat]:
        """Give the row of `cache` a seat in the batch; at the end `give_back` gets a cache with that row."""
        try:
            seat = self.batch.join(cache)
        except BaseException:
            give_back(cache)
            raise
        try:
            yield seat
        finally:
            self._tokens.pop(seat, None)
            self._work.set()
            give_back(self.batch.leave(seat))

    async def step(self, seat: Seat, token: int, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Feed a seat its token in the next step of all seats, and return its logits [1, 1, words]."""
        logits: asyncio.Future[torch.Tensor] = asyncio.get_running_loop().create_future()
        self._tokens[seat] = token, arguments, logits
        self._work.set()
        return await logits

    # ---- the rounds

    async def run(self) -> None:
        """Serve the turns until it is cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._pieces or self._tokens:
                self._read()
                await asyncio.sleep(0)  # turns whose message is read take their seats, and name their tokens
                self._step()
                await asyncio.sleep(0)

    def _read(self) -> None:
        """Read pieces of messages, as many as the others can wait for."""
        self._budget = self.chunk_size if self.batch.seats else PIECE
        while self._pieces and self._budget > 0:
            piece, done = self._pieces.popleft()
            if done.cancelled():
                continue
            try:
                read = piece()
            except BaseException as error:
                _fail([done], error)
            else:
                self._budget -= read
                done.set_result(read)

    def _step(self) -> None:
        """Make one step for all seats."""
        if not self._tokens or len(self._tokens) < len(self.batch.seats):
            return
        given, self._tokens = self._tokens, {}
        (arguments, *_) = (arguments for _, arguments, _ in given.values())
        try:
            logits = self.batch.step({seat: token for seat, (token, _, _) in given.items()}, arguments)
        except BaseException as error:
            _fail((future for _, _, future in given.values()), error)
            return
        for seat, (_, _, future) in given.items():
            if not future.cancelled():
                future.set_result(logits[seat])


def _fail(futures: Iterable[asyncio.Future[Any]], error: BaseException) -> None:
    """Let all who wait have the error, but no `StopIteration`, which a future cannot hold."""
    for future in futures:
        if not future.cancelled():
            wrapped = RuntimeError(f"a message could not be read: {error!r}")
            future.set_exception(wrapped if isinstance(error, StopIteration) else error)
