"""What a cache keeps of a stream: the sinks, the window, and the positions at which a query sees them."""

from __future__ import annotations

from drawing import FAINT, GONE, PAPER, QUERY, SINK, WINDOW, Drawing, write

SENTENCE = "It was late and the rain had not ceased when a knock came at the door"
WORDS = SENTENCE.split()
S, W = 4, 6
T = len(WORDS) - 1
CELL, LEFT = 58, 30
KEPT = [*range(S), *range(T - W, T + 1)]


def picture() -> str:
    sheet = Drawing(LEFT * 2 + CELL * len(WORDS), 330, "What a cache of four sinks and a window of six tokens keeps")
    _stream(sheet)
    start = LEFT + CELL * (len(WORDS) - len(KEPT)) / 2
    _links(sheet, start)
    _cache(sheet, start)
    return sheet.svg()


def _stream(sheet: Drawing) -> None:
    sheet.text(LEFT, 28, "The stream: every token so far, with its stream position", 14, "start", bold=True)
    for t, word in enumerate(WORDS):
        x, color = LEFT + CELL * t, _color(t)
        sheet.box(x, 60, CELL, 34, color, dashed=color == GONE)
        sheet.text(x + CELL / 2, 82, word, 13, fill=_ink(t))
        sheet.text(x + CELL / 2, 53, str(t), 12, fill=FAINT)
    gone = [t for t in range(len(WORDS)) if t not in KEPT]
    sheet.text(LEFT + CELL * (gone[0] + len(gone) / 2), 112, "evicted", 13, fill=FAINT)


def _links(sheet: Drawing, start: float) -> None:
    groups = [(0, S, 0, SINK), (T - W, W + 1, S, WINDOW)]
    for first, count, place, color in groups:
        above, below = LEFT + CELL * first, start + CELL * place
        corners = [(above, 95), (above + CELL * count, 95), (below + CELL * count, 189), (below, 189)]
        sheet.polygon(corners, color, 0.3)


def _cache(sheet: Drawing, start: float) -> None:
    for place, t in enumerate(KEPT):
        x = start + CELL * place
        sheet.box(x, 190, CELL, 34, _color(t))
        sheet.text(x + CELL / 2, 212, WORDS[t], 13, fill=_ink(t))
        sheet.text(x + CELL / 2, 243, str(place), 12, fill=FAINT)
    sheet.text(start - 10, 212, "the cache", 14, "end", bold=True)
    sheet.text(start - 10, 243, "cache position", 12, "end", FAINT)
    for first, count, name in ((0, S, "sinks, S = 4"), (S, W, "window, W = 6"), (S + W, 1, "query")):
        left, right = start + CELL * first + 4, start + CELL * (first + count) - 4
        sheet.line([(left, 254), (left, 260), (right, 260), (right, 254)])
        sheet.text((left + right) / 2, 278, name)
    words = "The query sees 11 keys at positions 0 to 10, whether it is the 16th token of its stream or the millionth."
    sheet.text(LEFT + CELL * len(WORDS) / 2, 312, words, 13)


def _color(t: int) -> str:
    if t == T:
        return QUERY
    if t < S:
        return SINK
    return WINDOW if t in KEPT else GONE


def _ink(t: int) -> str:
    if t == T:
        return PAPER
    return "#1f2937" if t in KEPT else FAINT


if __name__ == "__main__":
    write(__file__, picture)
