"""What a chat shows in a terminal: answers while they are made, as text or markdown, and a bar while it reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from ..chat.answer import AnswerStream, Piece

LONGEST_BLOCK = 8_000
"""Characters of a block of markdown. What is longer is shown in parts, so that drawing it anew stays cheap."""

UNSEEN = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
"""Characters that could steer the terminal, which a model may write and nobody should see."""


def show(text: str, dim: bool = False) -> None:
    """Write `text` to stdout; in a terminal that can, dimmed on request."""
    text = text.translate(UNSEEN)
    if dim and (console := Console()).is_terminal:
        console.out(text, end="", style="dim", highlight=False)
    else:
        print(text, end="", flush=True)


def show_answer(answer: AnswerStream, bar: ReadingBar, write: Callable[..., Any], label: str = "") -> None:
    """Write an answer as it is made, its thoughts in parentheses and dimmed; `bar` shows how its message is read.

    Where Ctrl-C stops it, all that was said is shown.

    Parameters
    ----------
    answer : AnswerStream
        What `StreamingChat.send` returned.
    bar : ReadingBar
        What `send` was given as `on_progress`.
    write : callable
        Called as `write(text)` and `write(text, dim=True)`.
    label : str, default ""
        What is written once the message is read.
    """
    thinks, shown = False, 0
    try:
        with bar:
            first = next(answer, Piece(""))
    finally:
        write(label)
    try:
        for piece in chain([first], answer):
            if piece.is_thought != thinks:
                thinks = piece.is_thought
                write("(thinks: " if thinks else ")\n", dim=True)
            write(piece, dim=thinks)
            shown += 0 if thinks else len(piece)
    finally:
        answer.close()
        if thinks:
            write(")\n" if answer.text else ")", dim=True)
        write(answer.text[shown:])


class ReadingBar:
    """A bar on stderr while a long message is read. There is none where stderr is no terminal.

    It is what `StreamingChat.send` takes as `on_progress`, and closes itself at the end of its `with` block.

    Attributes
    ----------
    read_at : float or None
        When the message was read to its end, on the clock of `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.read_at: float | None = None

    def __enter__(self) -> ReadingBar:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, read: int, total: int) -> None:
        if read >= total:
            self.read_at = time.perf_counter()
        console = Console(stderr=True)
        if self.bar is None and read < total and console.is_terminal:  # a short message is read at once
            columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.add_task("", total=total)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=read)
            if read >= total:
                self.bar.stop()  # the answer begins in its line


class MarkdownWriter:
    """Writes text as markdown while it comes, and dimmed text as it is.

    A block that is complete, such as a paragraph or a table, is printed for good. Only the last block, of which more
    may come, is drawn anew, and of that no more than fits the screen. So nothing flickers in a long answer, and all of
    it can be scrolled back to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.block = ""
        self.has_blocks = False
        self.live: Live | None = None

    def __enter__(self) -> MarkdownWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._finish()

    def write(self, text: str, dim: bool = False) -> None:
        text = text.translate(UNSEEN)
        if dim:
            self._finish()
            self.console.out(text, end="", style="dim", highlight=False)
            return
        *complete, self.block = blocks_of(self.block + text)
        if complete or self.block.strip():
            self._live().update(_LastLines(Markdown(self.block)))
        for block in complete:
            self._print(block)

    def _live(self) -> Live:
        if self.live is None:
            self.live = Live(console=self.console, transient=True, refresh_per_second=8)
            self.live.start()
        return self.live

    def _print(self, block: str) -> None:
        """Print a block for good, above the one that is drawn anew."""
        if self.has_blocks:
            self.console.print()
        self.has_blocks = True
        self.console.print(Markdown(block))

    def _finish(self) -> None:
        """Print the last block for good."""
        if self.live is not None:
            self.live.update(Text(""))
            self.live.stop()
            self.live = None
        block, self.block = self.block, ""
        if block.strip():
            self._print(block)


@contextmanager
def keys_not_echoed() -> Iterator[None]:
    """Let the terminal not show what is typed for the length of a block: it would shift what is drawn anew.

    What is typed is not lost; whoever reads the input next gets it.
    """
    if not sys.stdin.isatty() or sys.platform == "win32":
        yield
        return
    import termios

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(stdin, termios.TCSADRAIN, silent)
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


class _LastLines:
    """As many lines of the end of something as fit the screen."""

    def __init__(self, content: Markdown) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.content, options, pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


def blocks_of(text: str) -> list[str]:
    """Split markdown after its blocks: at blank lines that are not in a fenced block, and where one gets too long.

    The last part is the block of which more may come. The other parts are complete.
    """
    blocks = [""]
    fence = ""  # the line that has opened a fenced block
    for line, is_complete in _lines(text):
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and is_complete:
            fence = line if not fence else "" if fence.lstrip().startswith(mark) else fence
        if is_complete and not fence and not line.strip():
            blocks += [""] if blocks[-1] else []
            continue
        if len(blocks[-1]) > LONGEST_BLOCK:
            blocks.append(fence)
        blocks[-1] += line
    return blocks


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Yield lines with their ends, and whether they have one."""
    *lines, last = text.split("\n")
    yield from ((f"{line}\n", True) for line in lines)
    if last:
        yield last, False
