"""What happens between `model(ids, cache=cache)` and its output."""

from __future__ import annotations

from drawing import FAINT, GONE, INK, SINK, WINDOW, Drawing, write

WIDTH, LEFT, RIGHT = 900, 60, 840
MIDDLE = (LEFT + RIGHT) / 2


def picture() -> str:
    sheet = Drawing(WIDTH, 790, "The life of a call")
    _step(sheet, 24, "model(ids, attention_mask=…, cache=cache)", "a call of any length, with or without padding", GONE)
    _arrow(sheet, 84, 108)
    _step(
        sheet, 108, "Read and check", "which columns are tokens? does the cache belong to this model? refuse or go on"
    )
    _arrow(sheet, 168, 204)
    _frame(sheet, 204, 420, "for each chunk of at most 1,024 columns")
    _step(sheet, 236, "Plan", "from counters to integers: slots, positions, who sees whom; no keys, no model", SINK)
    _arrow(sheet, 296, 332)
    _frame(sheet, 332, 260, "for each layer of the model, which runs its own code", inset=24)
    _step(sheet, 364, "Project and rotate", "the model’s own queries, keys and values, at their model positions")
    _arrow(sheet, 424, 444)
    _step(sheet, 444, "Store", "the layer of the cache takes the new keys and returns those to attend to", WINDOW)
    _arrow(sheet, 504, 524)
    _step(sheet, 524, "Attend", "one token: over the ring in place. Several: in query blocks", WINDOW)
    _arrow(sheet, 592, 0, end=664)
    _step(sheet, 664, "Commit", "the counters advance; if anything failed, all is as it was before the call", SINK)
    _arrow(sheet, 724, 744)
    sheet.text(MIDDLE, 766, "outputs.logits, outputs.cache", 14, bold=True)
    return sheet.svg()


def _step(sheet: Drawing, y: float, name: str, words: str, fill: str = "#ffffff") -> None:
    sheet.box(LEFT + 50, y, RIGHT - LEFT - 100, 60, fill, radius=6)
    sheet.text(MIDDLE, y + 25, name, 15, bold=True)
    sheet.text(MIDDLE, y + 46, words, 13, fill=INK)


def _arrow(sheet: Drawing, start: float, stop: float, end: float | None = None) -> None:
    sheet.line([(MIDDLE, start), (MIDDLE, end or stop)], arrow=True)


def _frame(sheet: Drawing, y: float, height: float, words: str, inset: float = 0) -> None:
    sheet.box(LEFT + inset, y, RIGHT - LEFT - 2 * inset, height, "none", radius=8, dashed=True)
    sheet.text(LEFT + inset + 12, y + 21, words, 12, "start", FAINT)


if __name__ == "__main__":
    write(__file__, picture)
