"""Where streams stand, by a file, if streams can stand there."""

from __future__ import annotations

from ..plan.counters import Counters
from .schema import Rows
from .stream_state import RECORDED_COLUMNS, History, Standing


def standing_of(rows: Rows, columns: int, room: int) -> Standing:
    """Return where the streams stand, of which no layer loses a token before they have `room` of them.

    Raises
    ------
    ValueError
        When no stream can stand there.
    """
    batch_size = len(rows.seen)
    if not all(len(numbers) == batch_size for numbers in (rows.base, rows.floor, rows.tokens)):
        raise ValueError("holds counters of different numbers of rows; use an intact copy.")
    history = History(room, columns, rows.remembered, tuple(int(bits, 16) for bits in rows.tokens), tuple(rows.floor))
    lowest = [max(0, seen - 1) if seen > room else 0 for seen in rows.seen]
    possible = rows.remembered <= min(columns, RECORDED_COLUMNS + room) and all(
        base <= seen <= columns and low <= floor <= seen and tokens.bit_length() <= RECORDED_COLUMNS + room
        for base, seen, low, floor, tokens in zip(rows.base, rows.seen, lowest, rows.floor, history.tokens, strict=True)
    )
    if not possible or any(map(int.__gt__, history.count(rows.remembered), rows.seen)):
        raise ValueError("holds counters that no stream has; use an intact copy.")
    return Counters(tuple(rows.seen), tuple(rows.base)), history
