"""Where keys lie in memory, before and after the ring wraps, and the positions that go with them."""

from __future__ import annotations

from drawing import FAINT, GONE, INK, PAPER, QUERY, SINK, WINDOW, Drawing, write

S, W = 4, 6
SLOTS = S + W + 1
CELL, LEFT, PANEL = 58, 220, 206
STREAMS = (
    (6, "t = 6: the cache is filling. Every token lies at the slot of its own number."),
    (10, "t = 10: every slot is in use, and nothing has been evicted yet."),
    (13, "t = 13: the ring has wrapped. Tokens 11 to 13 lie where 4 to 6 lay; order in memory means nothing now."),
)


def slot_of(token: int) -> int:
    """Sinks have slots of their own; the others share a ring of W + 1 slots."""
    return token if token < S else S + (token - S) % (W + 1)


def picture() -> str:
    sheet = Drawing(LEFT + CELL * SLOTS + 40, PANEL * len(STREAMS) + 40, "The ring before and after it wraps")
    for row, (t, words) in enumerate(STREAMS):
        _panel(sheet, PANEL * row + 34, t, words)
    return sheet.svg()


def _panel(sheet: Drawing, y: float, t: int, words: str) -> None:
    sheet.text(20, y, words, 14, "start", bold=True)
    held = {slot_of(token): token for token in [*range(min(S, t + 1)), *range(max(S, t - W), t + 1)]}
    evicted = max(0, t - (S + W))
    for slot in range(SLOTS):
        x, token = LEFT + CELL * slot, held.get(slot)
        sheet.text(x + CELL / 2, y + 30, str(slot), 12, fill=FAINT)
        color = _color(token, t)
        sheet.box(x, y + 38, CELL, 34, color, dashed=token is None)
        if token is None:
            continue
        cache_position = token if token < S else token - evicted
        rotated_at = token + evicted if token < S else token
        sheet.text(x + CELL / 2, y + 60, str(token), 14, fill=PAPER if token == t else INK, bold=True)
        sheet.text(x + CELL / 2, y + 93, str(cache_position), 13)
        sheet.text(x + CELL / 2, y + 117, str(rotated_at), 13, bold=token < S and evicted > 0)
        sheet.text(x + CELL / 2, y + 141, str(t - rotated_at), 13, fill=FAINT)
    names = (
        "slot",
        "token (stream position)",
        "cache position",
        "key is rotated for position",
        "distance to the query",
    )
    for name, at in zip(names, (30, 60, 93, 117, 141), strict=True):
        sheet.text(LEFT - 12, y + at, name, 12, "end", FAINT)
    for first, count, name in ((0, S, "4 sinks"), (S, W + 1, "ring of W + 1 = 7 slots")):
        left, right = LEFT + CELL * first + 4, LEFT + CELL * (first + count) - 4
        sheet.line([(left, y + 150), (left, y + 156), (right, y + 156), (right, y + 150)])
        sheet.text((left + right) / 2, y + 172, name, 12)


def _color(token: int | None, t: int) -> str:
    if token is None:
        return GONE
    if token == t:
        return QUERY
    return SINK if token < S else WINDOW


if __name__ == "__main__":
    write(__file__, picture)
