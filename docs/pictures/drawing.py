"""A small SVG writer: rectangles, words and arrows on a white sheet.

The pictures of the documentation are written as text, so that the same script gives the same file on every machine.
Each script beside this one has a function `picture()` that returns its SVG; run as a program it writes the SVG next to
itself. `tests/docs/test_pictures.py` compares the committed files with what the scripts give.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

SINK = "#f9c784"
WINDOW = "#a9d0f5"
QUERY = "#2f6db5"
GONE = "#eeeeee"
LINE = "#6b7280"
INK = "#1f2937"
FAINT = "#6b7280"
PAPER = "#ffffff"


class Drawing:
    """A white sheet.

    Parameters
    ----------
    width, height : int
        Its size in pixels.
    title : str
        What the picture shows, for readers who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="DejaVu Sans, Verdana, Arial, sans-serif" role="img">'
        )
        self._parts = [f"<title>{escape(title)}</title>"]
        self.box(0, 0, width, height, PAPER, border=None, radius=8)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        border: str | None = LINE,
        radius: float = 0,
        dashed: bool = False,
    ) -> None:
        """Draw a rectangle whose upper left corner is at (x, y)."""
        stroke = f' stroke="{border}"' if border else ""
        dashes = ' stroke-dasharray="3 3"' if dashed else ""
        corners = f' rx="{radius:g}"' if radius else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{stroke}{dashes}{corners}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 13,
        anchor: str = "middle",
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        """Write `words` with their base line at y; `anchor` is "start", "middle" or "end"."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}>'
            f"{escape(words)}</text>"
        )

    def polygon(self, points: list[tuple[float, float]], fill: str, opacity: float) -> None:
        """Fill the area between `points`."""
        corners = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<polygon points="{corners}" fill="{fill}" fill-opacity="{opacity:g}"/>')

    def line(self, points: list[tuple[float, float]], arrow: bool = False, color: str = LINE) -> None:
        """Draw a line through `points`, with a head at its end if it is an `arrow`."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            base = [(x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
            self.polygon([(x, y), *base], color, 1)

    def svg(self) -> str:
        """Return the whole picture as text."""
        return "\n".join([self._head, *self._parts, "</svg>"]) + "\n"


def write(script: str, picture: Callable[[], str]) -> None:
    """Write the picture of `script` next to it."""
    path = Path(script).with_suffix(".svg")
    path.write_text(picture(), encoding="utf-8", newline="\n")
    print(path)
