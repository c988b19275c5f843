"""Which keys every query sees: dense attention, a window, sinks, and the two meanings of a long call."""

from __future__ import annotations

from collections.abc import Callable

from drawing import FAINT, GONE, INK, PAPER, QUERY, SINK, WINDOW, Drawing, write

TOKENS, S, W = 14, 2, 4
CALL = 7
"""The panels of prefill show two calls; this is where the second one starts."""

CELL, LEFT, TOP = 16, 56, 92
PANEL_WIDTH, PANEL_HEIGHT = CELL * TOKENS + 76, CELL * TOKENS + 130


def dense(query: int, key: int) -> bool:
    return True


def window(query: int, key: int) -> bool:
    return key >= query - (S + W)


def sinks(query: int, key: int) -> bool:
    return key < S or key >= query - W


def dense_prefill(query: int, key: int) -> bool:
    start = 0 if query < CALL else CALL
    return key >= start or key < S or key >= start - W


PANELS = (
    ("Dense attention", "everything, at any cost", dense, False),
    ("Window attention", "the first tokens are lost", window, False),
    ("Attention sinks", "sinks and window stay", sinks, False),
    ("Two calls, “streaming”", "a call is its tokens one by one", sinks, True),
    ("Two calls, “dense”", "a call sees all of itself", dense_prefill, True),
)


def picture() -> str:
    sheet = Drawing(PANEL_WIDTH * 3 + 30, PANEL_HEIGHT * 2, "Which keys each query sees")
    for index, (name, words, sees, calls) in enumerate(PANELS):
        row, column = divmod(index, 3)
        _panel(sheet, LEFT + PANEL_WIDTH * column, TOP + PANEL_HEIGHT * row, name, words, sees, calls)
    _legend(sheet, LEFT + PANEL_WIDTH * 2, TOP + PANEL_HEIGHT)
    return sheet.svg()


def _panel(
    sheet: Drawing, x: float, y: float, name: str, words: str, sees: Callable[[int, int], bool], calls: bool
) -> None:
    size = CELL * TOKENS
    sheet.text(x + size / 2, y - 58, name, 15, bold=True)
    sheet.text(x + size / 2, y - 38, words, 13, fill=FAINT)
    sheet.text(x + size / 2, y - 10, "key at stream position 0, 1, 2 … →", 11, fill=FAINT)
    for query in range(TOKENS):
        for key in range(query + 1):
            color = _color(query, key) if sees(query, key) else GONE
            sheet.box(x + CELL * key, y + CELL * query, CELL, CELL, color, border=PAPER)
    for label in (0, TOKENS - 1):
        sheet.text(x - 8, y + CELL * label + 12, str(label), 11, "end", FAINT)
    sheet.text(x - 8, y + size / 2 + 4, "query", 11, "end", FAINT)
    if calls:
        border = y + CELL * CALL
        sheet.line([(x - 4, border), (x + size, border)], color=INK)
        sheet.text(x + size - 2, border - 8, "first call", 11, "end")


def _color(query: int, key: int) -> str:
    if query == key:
        return QUERY
    return SINK if key < S else WINDOW


def _legend(sheet: Drawing, x: float, y: float) -> None:
    entries = (
        (QUERY, "the query itself"),
        (WINDOW, "another key it sees"),
        (SINK, "one of the first S tokens"),
        (GONE, "a key it does not see"),
    )
    for row, (color, words) in enumerate(entries):
        sheet.box(x, y + 34 * row, 20, 20, color)
        sheet.text(x + 32, y + 34 * row + 15, words, 13, "start")
    lines = (f"Drawn for S = {S} sinks and", f"a window of W = {W} tokens;", f"window attention has W = {S + W}.")
    for row, words in enumerate(lines):
        sheet.text(x, y + 172 + 20 * row, words, 13, "start", FAINT)


if __name__ == "__main__":
    write(__file__, picture)
