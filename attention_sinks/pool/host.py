"""The thread that owns the model: it serves the turns that other threads ask for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ..chat.answer import Piece
from ..chat.turns import Request, handed_out
from .answers import End
from .batch import Batch
from .beginnings import Beginnings
from .mailbox import Mailbox
from .numbers import Meter, PoolNumbers
from .stepper import Stepper
from .talk import Talk
from .turn import Course

ResultT = TypeVar("ResultT")


class PoolFullError(RuntimeError):
    """All rows of a pool are in use, and no more turns may wait for one."""


class Opened(Protocol):
    """A conversation that one turn has for itself."""

    @property
    def value(self) -> Talk | None: ...

    def save(self, value: Talk) -> None:
        """Keep the conversation as it is now."""

    def close(self, keep: bool = True) -> None:
        """Let the next turn have it; without `keep` only what has been saved of it."""


@dataclass(eq=False)
class PoolTurn:
    """A turn that a pool is asked for.

    Attributes
    ----------
    open : callable
        Gives the turn its conversation; it may take a while, and raise.
    new : callable
        Returns a conversation that has not begun.
    check : callable
        Raises what is wrong with going on in a conversation.
    request : Request
        What it is asked.
    is_free : callable
        Called when the conversation is free again.
    mail : Mailbox
        Where the pieces of the answer go.
    since : float
        When it was asked for.
    task : asyncio.Task or None
        What serves it.
    waits : bool
        Whether it waits for a row.
    has_row : bool
        Whether it has one.
    """

    open: Callable[[], Opened]
    new: Callable[[], Talk]
    check: Callable[[Talk], None]
    request: Request
    is_free: Callable[[], None]
    mail: Mailbox[Piece | End] = field(default_factory=Mailbox)
    since: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None
    waits: bool = False
    has_row: bool = False


class Host:
    """Serve turns in a thread of its own, as many at once as there are rows. The others wait, first come, first served.

    Parameters
    ----------
    batch : Batch
        The rows.
    chunk_size : int
        How many tokens of messages are read between two steps.
    shared_beginnings : int
        How many beginnings are kept for those who begin alike.
    most_waiting : int or None
        How many turns may wait for a row; None for any number.
    """

    def __init__(self, batch: Batch, chunk_size: int, shared_beginnings: int, most_waiting: int | None) -> None:
        self.batch, self.most_waiting, self.meter = batch, most_waiting, Meter()
        self._stepper = Stepper(batch, chunk_size)
        self._course = Course(self._stepper, Beginnings(shared_beginnings, self.meter), self.meter)
        self._lock, self._turns = threading.Lock(), set[PoolTurn]()
        self._rows, self._ending, self._closed = asyncio.Semaphore(batch.most), asyncio.Event(), False
        self._files = ThreadPoolExecutor(4, thread_name_prefix="attention_sinks-files")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="attention_sinks-pool", daemon=True)
        self._thread.start()

    # ---- from any thread

    def serve(self, turn: PoolTurn, wait: bool) -> None:
        """Serve a turn when its time comes; without `wait` only if a row is free.

        Raises
        ------
        PoolFullError
            When there is no row for it, or too many wait already.
        RuntimeError
            When the pool is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed; make another one, from which saved conversations go on.")
            most_waiting = self.most_waiting if wait else 0
            if most_waiting is not None and len(self._turns) >= self.batch.most + most_waiting:
                self.meter.add("turns_refused")
                raise PoolFullError(
                    f"all {self.batch.most} rows are in use and {len(self._turns) - self.batch.most} turns wait; try "
                    "again later, make the pool with more rows or a larger max_waiting, or send with wait=True."
                )
            self._turns.add(turn)
            self._loop.call_soon_threadsafe(self._begin, turn)  # before `close` can tell the loop to end

    def stop(self, turn: PoolTurn) -> None:
        """Stop a turn, if it has not ended."""
        turn.request.stopping.set()
        with suppress(RuntimeError):  # the pool is closed, and all turns have ended
            self._loop.call_soon_threadsafe(self._stop_waiting, turn)

    def close(self) -> None:
        """Stop all turns and end the thread. What was said until then is saved."""
        with self._lock:
            if self._closed:
                return
            self._closed, turns = True, list(self._turns)
        for turn in turns:
            self.stop(turn)
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._files.shutdown()

    def numbers(self, sleeping_bytes: int) -> PoolNumbers:
        """Return what it does and has done."""
        with self._lock:
            turns = list(self._turns)
        in_use, cache = sum(turn.has_row for turn in turns), self.batch.cache
        return self.meter.numbers(
            rows=self.batch.most,
            rows_in_use=in_use,
            waiting=len(turns) - in_use,
            batch_bytes=0 if cache is None else cache.nbytes,
            sleeping_bytes=sleeping_bytes,
        )

    # ---- in the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._until_closed())
        finally:
            self._loop.close()

    async def _until_closed(self) -> None:
        stepping = asyncio.create_task(self._stepper.run())
        await self._ending.wait()
        while tasks := [turn.task for turn in self._turns if turn.task is not None]:
            await asyncio.wait(tasks)
        stepping.cancel()

    def _begin(self, turn: PoolTurn) -> None:
        turn.task = asyncio.get_running_loop().create_task(self._serve(turn))

    def _stop_waiting(self, turn: PoolTurn) -> None:
        if turn.task is not None and turn.waits:
            turn.task.cancel()

    async def _serve(self, turn: PoolTurn) -> None:
        """Serve a turn to its end, of which whoever reads the answer is told."""
        end, outcome = End(), "turns_finished"
        try:
            await self._take(turn)
        except asyncio.CancelledError:  # it was stopped while it waited
            pass
        except BaseException as error:
            end, outcome = End(error), "turns_failed"
        answer = turn.request.answers[0]
        if turn.request.stopping.is_set() and end.error is None:
            outcome = "turns_finished" if answer.finish_reason in ("stop", "length") else "turns_stopped"
        answer.finish_reason = answer.finish_reason or "interrupted"
        with self._lock:
            self._turns.discard(turn)
        turn.is_free()
        self.meter.add(outcome)
        turn.mail.put(end)

    async def _take(self, turn: PoolTurn) -> None:
        """Wait for a row, wake the conversation, take the turn, and let the conversation sleep."""
        if turn.request.stopping.is_set():
            return
        turn.waits = True
        await self._rows.acquire()
        turn.waits, turn.has_row = False, True
        try:
            opened = await self._in_thread(turn.open)
            await self._take_in(opened, turn)
        finally:
            turn.has_row = False
            self._rows.release()

    async def _take_in(self, opened: Opened, turn: PoolTurn) -> None:
        """Take a turn in a conversation, and save it."""
        talk = opened.value
        try:
            talk = turn.new() if talk is None else talk
            turn.check(talk)
            try:
                await self._course.take(talk, turn.request, turn.since, lambda pieces: self._give(turn, pieces))
            finally:
                if not talk.stream.is_lent and talk.stream.rows is not None:
                    await self._save(opened, talk)
        finally:
            await self._in_thread(opened.close, talk is None or not talk.stream.is_lent)

    async def _save(self, opened: Opened, talk: Talk) -> None:
        try:
            await self._in_thread(opened.save, talk)
        except OSError as error:
            raise OSError(
                f"the conversation could not be saved ({error}). The turn is complete; make room or the folder again, "
                "and the next turn saves it."
            ) from error

    def _give(self, turn: PoolTurn, pieces: list[list[Piece]]) -> None:
        for piece in handed_out(pieces, alone=True):
            turn.mail.put(piece)

    async def _in_thread(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run what reads or writes files beside the steps of the model."""
        return await self._loop.run_in_executor(self._files, function, *arguments)
