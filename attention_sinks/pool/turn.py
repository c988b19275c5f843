"""One turn of one conversation, from its message to the end of its answer, beside the turns of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..chat.answer import Piece
from ..chat.stream import PIECE, ChatStream, Stopped
from ..chat.turns import Answering, Request
from .beginnings import Beginnings
from .numbers import Meter
from .stepper import Stepper
from .talk import Talk

Give = Callable[[list[list[Piece]]], Any]
"""It hands the new pieces of the answer, in a list with that list, to whoever reads them."""


class Course:
    """The course of a turn in a pool. All of it runs in the pool's event loop.

    Parameters
    ----------
    stepper : Stepper
        Runs the model.
    beginnings : Beginnings
        What conversations begin with.
    meter : Meter
        Told what is read and said.
    """

    def __init__(self, stepper: Stepper, beginnings: Beginnings, meter: Meter) -> None:
        self.stepper, self.beginnings, self.meter = stepper, beginnings, meter

    async def take(self, talk: Talk, request: Request, since: float, give: Give) -> None:
        """Take a turn that was asked for at the time `since`, and hand the pieces of the answer to `give`.

        Whatever is raised, the conversation is then as before the turn, or as if its answer had been left where it
        was, or its stream is lost with the batch (`is_lent`).
        """
        turns, stream, talk.left = talk.turns, talk.stream, None
        request = replace(
            request,
            messages=turns.checked(request.messages, request.options),
            piece_size=self.stepper.piece_size,
        )
        await self._at_leisure(turns.settling(request.messages), stream)
        prompts = turns.prompts(request)
        if stream.rows is None:
            await self.beginnings.begin(talk, prompts[0].ids, self.stepper)
        try:
            answering = turns.begin(request, prompts)
            logits = await self._read(answering, stream)
            stream.settle()
            if logits is None:
                return
            turns.report_evicted(None)
            await self._answer(talk, answering, logits, since, give)
        finally:
            stream.settle()
            if not stream.is_lent:
                give(turns.leave())
        await self._at_leisure(turns.ending(), stream)
        turns.report_evicted(None)
        if stream.fork is not None:
            await self.stepper.read(partial(_leave, talk))

    async def _at_leisure(self, pieces: Iterator[None], stream: ChatStream) -> None:
        """Do what comes between turns; where it feeds the stream, beside the steps of others."""
        if stream.fork is None:
            deque(pieces, maxlen=0)
        else:
            await self.stepper.read_all(pieces)

    async def _read(self, answering: Answering, stream: ChatStream) -> torch.Tensor | None:
        """Read the message; return the logits that choose the first token, None when the reading was stopped."""
        reading, decoder = answering.reading, answering.decoder
        pieces, logits = stream.read(reading, decoder), None

        def piece() -> int:
            nonlocal logits
            before = sum(stream.seen)
            logits = next(pieces)
            return sum(stream.seen) - before

        while stream.rows is not reading.rows:
            if reading.stopping.is_set():
                return None
            try:
                self.meter.add("tokens_read", await self.stepper.read(piece))
            except Stopped:
                return None
        return logits

    async def _answer(self, talk: Talk, answering: Answering, logits: torch.Tensor, since: float, give: Give) -> None:
        """Say the first token, then take a seat in the batch for the others."""
        turns, stream, decoder = talk.turns, talk.stream, answering.decoder
        give(turns.hear(decoder, logits))
        since = self.meter.said(since, is_first=True)
        stopping = answering.reading.stopping
        if decoder.is_done or stopping.is_set():
            return
        async with self.stepper.seat(stream.lend(), stream.take_back) as seat:
            while not decoder.is_done and not stopping.is_set():
                logits = await self.stepper.step(seat, int(decoder.columns), decoder.arguments)
                stream.stepped()
                give(turns.hear(decoder, logits))
                since = self.meter.said(since, is_first=False)


def _leave(talk: Talk) -> int:
    """Note where a conversation would stand if it were left amid its calls of tools."""
    talk.left = talk.turns.as_left()
    return PIECE
