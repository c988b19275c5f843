"""The conversation of `attention-sinks chat`: what is typed, the commands, and the line after each answer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..chat.answer import AnswerStream
from ..chat.chat import StreamingChat
from .opening import Opener
from .terminal import MarkdownWriter, ReadingBar, keys_not_echoed, show, show_answer
from .typed import BLOCK, read_message

HELP = f"""\
/save PATH    keep the conversation in a file
/load PATH    go on with the one in a file
/forget       begin anew
/system TEXT  begin anew with this system prompt, or without TEXT with none of yours
/help         show this
/exit         leave, as Ctrl-D does and Ctrl-C twice
A line that ends in \\ goes on in the next one; lines between two lines of {BLOCK} are one message.
Ctrl-C stops an answer. A space before / sends a line that begins with it."""


class Talk:
    """A conversation in the terminal. What the model says goes to stdout, all else to stderr.

    Parameters
    ----------
    opener : Opener
        Opens chats.
    chat : StreamingChat
        The chat to begin with.
    """

    def __init__(self, opener: Opener, chat: StreamingChat) -> None:
        self.opener, self.chat = opener, chat
        self.console, self.notes = Console(), Console(stderr=True, highlight=False, soft_wrap=True)
        self.commands: dict[str, Callable[[str], None]] = {
            "/save": self._save,
            "/load": self._load,
            "/forget": self._forget,
            "/system": self._system,
            "/help": lambda _: self.note(HELP),
        }

    def note(self, text: str, style: str = "dim") -> None:
        """Write a line about the conversation."""
        self.notes.print(text, style=style, markup=False)

    def go_on(self) -> None:
        """Answer messages and obey commands until the input ends or somebody leaves."""
        presses = 0  # of Ctrl-C at the prompt, one after the other
        while presses < 2:
            try:
                line = read_message("\n> ", "... ")
                presses = 0
            except KeyboardInterrupt:
                presses += 1
                self.note("\nCtrl-C again, Ctrl-D or /exit leaves." if presses == 1 else "")
                continue
            if line is None or line.strip() == "/exit":
                return
            try:
                self._take(line)
            except KeyboardInterrupt:  # within a command
                self.note("stopped")
            except BrokenPipeError:  # nobody reads answers any more
                raise
            except (ImportError, NotImplementedError, OSError, ValueError) as error:
                self.note(" ".join(str(error).split()), style="red")

    def _take(self, line: str) -> None:
        """Obey a command or answer a message."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self._answer(line.strip())
            return
        name, _, rest = line.partition(" ")
        if (command := self.commands.get(name.strip())) is None:
            raise ValueError(f"there is no command {name!r:.40}; /help lists them. A space before / sends the line.")
        command(rest.strip())

    # ---- answers

    def _answer(self, message: str) -> None:
        bar, start = ReadingBar(), time.perf_counter()
        answer = self.chat.send(message, on_progress=bar)
        try:
            self._show(answer, bar)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            self.chat.stop()
            self._keep()
            if isinstance(error, BrokenPipeError):
                raise
        finally:
            if answer.answer.begun:
                self.note(self._status(answer, time.perf_counter() - (bar.read_at or start)))
            elif sys.exc_info()[0] is None:
                self.note("stopped before the message was read; it is forgotten")

    def _show(self, answer: AnswerStream, bar: ReadingBar) -> None:
        if not self.console.is_terminal:
            try:
                show_answer(answer, bar, show)
            finally:
                show("\n")
            return
        with keys_not_echoed(), MarkdownWriter(self.console) as writer:
            show_answer(answer, bar, writer.write)

    def _status(self, answer: AnswerStream, seconds: float) -> str:
        """Return the line after an answer."""
        cache, written = self.chat.cache, answer.usage.tokens_written
        parts = [
            f"{cache.get_seq_length():,} tokens seen",
            f"{int(cache.tokens_cached.max()):,} in the window",
            f"{written / max(seconds, 1e-9):,.1f} tokens/s",
        ]
        why = {"length": f"cut at {written:,} tokens (--max-new-tokens)", "interrupted": "stopped"}
        return " · ".join([*parts, *filter(None, [why.get(answer.finish_reason or "")])])

    # ---- commands

    def _keep(self) -> None:
        """Write the session as it is now."""
        if self.chat.autosave is not None:
            self.chat.save(self.chat.autosave)

    def _save(self, path: str) -> None:
        self.chat.save(_path(path, "/save"))
        self.note(f"saved to {path}")

    def _load(self, path: str) -> None:
        self.chat = self.opener.load(_path(path, "/load"))
        self._keep()
        self.note(f"goes on with {path}, {self.chat.cache.get_seq_length():,} tokens long")

    def _forget(self, rest: str) -> None:
        self.chat.reset()
        self._keep()
        self.note("a new conversation begins")

    def _system(self, text: str) -> None:
        self.chat = self.opener.begin_like(self.chat, text or None)
        self._keep()
        self.note("a new conversation begins" + (", with this system prompt" if text else ""))


def _path(text: str, command: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs the path of a file.")
    return Path(text).expanduser()
