"""The streams of a chat's conversations: a cache and what was said but not fed. Both move at once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ..architecture.setup import setup_of
from ..cache.cache import AttentionSinkKVCache
from ..versions import CACHE
from .decoding import Decoder, device_of, left_padded
from .rows import Row, TurnLog

PIECE = 256
"""A longer message of a chat alone is read in pieces of this many columns. Between two the reading can be stopped."""


def piece_size() -> int:
    """Return how many columns are read at once in a chat alone."""
    return PIECE


Progress = Callable[[int, int], Any]
"""It is told how many columns of a message have been read, and how many there are."""


class Stopped(Exception):
    """The reading of a message has been stopped."""


@dataclass(frozen=True)
class Fork:
    """The streams as they were before an answer was opened.

    Attributes
    ----------
    cache : AttentionSinkKVCache or Cache
        The cache then.
    length : int
        Its columns then.
    seen : list of int
        How many tokens each stream had then.
    options : dict or None
        The keywords for the template of that turn.
    """

    cache: Any
    length: int
    seen: list[int]
    options: dict[str, Any] | None


@dataclass(frozen=True)
class Reading:
    """How the messages of a turn are read.

    Attributes
    ----------
    prompts : list of list of int
        The tokens of each row.
    rows : tuple of Row
        Where the conversations stand once they are read.
    opening : int or None
        How many of the last columns open the answer, if the streams are to be forked before them.
    options : dict or None
        The keywords for the template, which a fork remembers.
    progress : callable or None
        Told after each piece.
    stopping : threading.Event
        Set when the reading shall stop.
    piece_size : callable
        Says how many columns the next piece has at most.
    """

    prompts: list[list[int]]
    rows: tuple[Row, ...]
    opening: int | None
    options: dict[str, Any] | None
    progress: Progress | None
    stopping: threading.Event
    piece_size: Callable[[], int]


class ChatStream:
    """The cache of a chat, and where its conversations stand.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        The model.
    cache : AttentionSinkKVCache or Cache
        The cache of the streams, one row for each conversation.
    compiles : bool, default False
        Whether single steps run in a compiled graph.

    Attributes
    ----------
    cache : AttentionSinkKVCache or Cache
        As given, or another that has taken its place.
    logs : list of TurnLog
        Which turns the window of each conversation holds.
    fork : Fork or None
        The streams before the answers whose thoughts are to be forgotten.
    pressed : callable
        Says whether Ctrl-C was pressed in the step that is being made.
    """

    def __init__(self, model: Any, cache: Any, compiles: bool = False) -> None:
        self.model, self.cache = model, cache
        self.logs: list[TurnLog] = []
        self.fork: Fork | None = None
        self.pressed: Callable[[], bool] = bool
        # By the length of the cache: where the conversations stand when it has that length.
        self._rows_at: dict[int, tuple[Row, ...]] = {}
        self._unread: tuple[Any, Fork | None] | None = None  # cache and fork without the message that is being read
        self._lent: int | None = None  # the tokens of the stream while a batch has its cache
        self._known = 0  # how many columns of the first message the cache has before that is read
        self._step = torch.compile(model.forward, fullgraph=True) if compiles else None

    @property
    def rows(self) -> tuple[Row, ...] | None:
        """Where the conversations stand; None before the first turn."""
        return self._rows_at.get(self._length)

    @rows.setter
    def rows(self, rows: tuple[Row, ...]) -> None:
        self._rows_at = {self._length: rows}

    @property
    def _length(self) -> int:
        """By which it is known where the conversations stand."""
        length: int = self.cache.get_seq_length() if self._lent is None else self._lent
        return length

    @property
    def seen(self) -> list[int]:
        """How many tokens each stream has; empty before the first turn."""
        if self._lent is not None:
            return [self._lent]
        if isinstance(self.cache, AttentionSinkKVCache):
            return list(self.cache.streams.seen)
        return [self.cache.get_seq_length()] * len(self.rows or ())  # of several rows these are columns

    def reset(self) -> None:
        """Forget the conversations."""
        self.cache.reset()
        self.logs, self.fork = [], None

    # ---- reading

    def begin_from(self, cache: Any, count: int) -> None:
        """Go on from `cache`, which holds the first `count` tokens of the first message already."""
        self._unread = self.cache, self.fork
        self.cache, self._known = cache, count

    def read(self, reading: Reading, decoder: Decoder) -> Iterator[torch.Tensor]:
        """Feed the messages of a turn piece by piece. Yield the logits of each piece; the last ones choose a token.

        Where the conversations then stand is noted for the length of the cache. So it is true as soon as the cache has
        that length; if it never has, `settle` takes back what was read.
        """
        ids, mask, before = decoder.columns, decoder.mask, self.rows
        columns, start = ids.shape[1], self._known
        length = self.cache.get_seq_length() - start
        self._log_turn(reading, before, [seen - start for seen in self.seen] or [0] * len(ids))
        self._rows_at = {length + columns: reading.rows} | ({} if before is None else {length: before})
        cuts = self._cuts(reading, columns, mask)
        while start < columns:
            end = next(cuts)
            if start == self._known and end < columns and self._unread is None:
                self._unread = copy.deepcopy(self.cache), self.fork
            if start > self._known and (reading.stopping.is_set() or self.pressed()):
                raise Stopped
            piece = slice(start, end)
            logits = self._call(ids[:, piece], None if mask is None else mask[:, piece], decoder.arguments)
            if reading.opening is not None and end == columns - reading.opening:
                self._take_fork(reading)
            if reading.progress is not None:
                reading.progress(end, columns)
            start = end
            yield logits

    def _cuts(self, reading: Reading, columns: int, mask: torch.Tensor | None) -> Iterator[int]:
        """Yield where each piece of a message ends; each is as long as `reading` says when it is begun."""
        end, mark = self._known, columns if reading.opening is None else columns - reading.opening
        while end < columns:
            stop, size = mark if end < mark else columns, reading.piece_size()
            end = end + size if end + size < stop and self.can_read_in_pieces(mask) else stop
            yield end

    def can_read_in_pieces(self, mask: torch.Tensor | None = None) -> bool:
        """Return whether a message, with that mask of padding, may be fed in several calls."""
        setup = setup_of(self.model) if isinstance(self.cache, AttentionSinkKVCache) else None
        if setup is None:
            return mask is None
        padded_states = mask is not None and setup.has_states
        return setup.settings.prefill == "streaming" and setup.architecture.states_continue and not padded_states

    def _take_fork(self, reading: Reading) -> None:
        cache = copy.deepcopy(self.cache)
        self.fork = Fork(cache, cache.get_seq_length(), self.seen, reading.options)

    def _log_turn(self, reading: Reading, before: tuple[Row, ...] | None, seen: list[int]) -> None:
        if len(self.logs) != len(reading.rows):
            self.logs = [TurnLog() for _ in reading.rows]
        for index, (log, row, tokens) in enumerate(zip(self.logs, reading.rows, reading.prompts, strict=True)):
            log.begin(row.turn, seen[index] + (len(before[index].unfed) if before else 0))
            log.write(seen[index], tokens)

    # ---- answering

    def step(self, decoder: Decoder) -> torch.Tensor:
        """Feed the tokens that were said last, those of answers that go on; return their logits."""
        ids, mask = decoder.columns, decoder.mask
        length, before, seen = self.cache.get_seq_length(), self.rows or (), self.seen
        kept = [True] * len(ids) if mask is None else mask[:, 0].bool().tolist()
        after = tuple(row.fed() if fed else row for row, fed in zip(before, kept, strict=True))
        for log, row, position, fed in zip(self.logs, before, seen, kept, strict=True):
            if fed:
                log.write(position, row.unfed)
        self._rows_at = {length: before, length + 1: after}
        return self._call(ids, mask, decoder.arguments)

    @torch.no_grad()
    def _call(
        self, ids: torch.Tensor, mask: torch.Tensor | None, arguments: dict[str, Any], cache: Any = None
    ) -> torch.Tensor:
        """Call the model; return its logits [batch, columns, words]."""
        cache = self.cache if cache is None else cache
        steps = self._step is not None and ids.shape[1] == 1 and cache.can_step_in_graph
        run: Any = self._step if steps else self.model
        outputs = run(input_ids=ids, attention_mask=mask, use_cache=True, **{CACHE: cache}, **arguments)
        logits: torch.Tensor = outputs.logits
        return logits

    def settle(self) -> None:
        """Take back what has been read of a message that was not read to its end."""
        if self._unread is not None:
            whole = self.cache.get_seq_length() in self._rows_at
            cache, fork = (self.cache, self.fork) if whole else self._unread
            self.cache, self.fork, self._unread, self._known = cache, fork, None, 0

    # ---- answering as a row of a batch

    @property
    def is_lent(self) -> bool:
        """Whether a batch has the cache."""
        return self._lent is not None

    def lend(self) -> AttentionSinkKVCache:
        """Give the cache of one conversation away: until `take_back`, its stream goes on as a row of a batch."""
        cache, rows, empty = self.cache, self.rows, self.cache.new_empty()
        assert rows is not None  # the message is read
        (seen,) = cache.streams.seen
        self._rows_at = {cache.get_seq_length(): rows, seen: rows}
        self.cache, self._lent = empty, seen
        return cast(AttentionSinkKVCache, cache)

    def stepped(self) -> None:
        """Note that the batch has been fed what was said last."""
        rows, (log,), (seen,) = self.rows, self.logs, self.seen
        assert rows is not None  # as in `lend`
        (row,) = rows
        log.write(seen, row.unfed)
        self._rows_at = {seen: (row,), seen + 1: (row.fed(),)}
        self._lent = seen + 1

    def take_back(self, cache: AttentionSinkKVCache) -> None:
        """Go on in `cache`, which holds the row of the batch.

        Raises
        ------
        RuntimeError
            When the row has another number of tokens than the stream, so that something was lost on the way.
        """
        rows = self.rows
        if rows is None or list(cache.streams.seen) != self.seen:
            raise RuntimeError(
                f"the row has {cache.streams.seen} tokens, but its stream {self.seen}; load a saved one."
            )
        self._rows_at = {cache.get_seq_length(): rows}
        self.cache, self._lent = cache, None

    # ---- forgetting thoughts

    def forgetting(self, tokens: list[list[int]]) -> Generator[None, None, tuple[Any, tuple[Row, ...]]]:
        """Return the cache and the rows as if, since the fork, each row had been fed `tokens` instead.

        It yields after each piece. Where it breaks off it may be begun again, and goes on from there.
        """
        fork, rows = self.fork, self.rows
        assert fork is not None and rows is not None  # an answer was made
        after = tuple(row.forgot() for row in rows)
        if self._fed_since(fork, rows) == tokens:
            return self.cache, tuple(replace(new, unfed=old.unfed) for new, old in zip(after, rows, strict=True))
        ids, mask = left_padded(tokens, device_of(self.model))
        padding = None if bool(mask.all()) else mask
        size = PIECE if self.can_read_in_pieces(padding) else max(ids.shape[1], 1)
        for start in range(fork.cache.get_seq_length() - fork.length, ids.shape[1], size):
            piece = slice(start, start + size)
            self._call(ids[:, piece], None if padding is None else padding[:, piece], {}, fork.cache)
            yield
        return fork.cache, after

    def _fed_since(self, fork: Fork, rows: tuple[Row, ...]) -> list[list[int]] | None:
        """Return what each row was fed or said since the fork, None where the window does not hold all of it."""
        if any(log.base > seen for log, seen in zip(self.logs, fork.seen, strict=True)):
            return None
        parts = zip(self.logs, fork.seen, self.seen, rows, strict=True)
        return [[*log.tokens[start - log.base : end - log.base], *row.unfed] for log, start, end, row in parts]

    def adopt(self, cache: Any, rows: tuple[Row, ...], tokens: list[list[int]]) -> None:
        """Go on from what `forgetting` has returned for `tokens`."""
        fork, logs = self.fork, self.logs
        assert fork is not None
        if cache is fork.cache:
            logs = copy.deepcopy(logs)  # `forgetting` reads the old ones when this breaks off and is begun again
            for log, position, row in zip(logs, fork.seen, tokens, strict=True):
                log.write(position, row)
        self.cache, self._rows_at, self.logs, self.fork = cache, {cache.get_seq_length(): rows}, logs, None
