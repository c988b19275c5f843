"""What the demos show in a terminal: text, some of it dimmed, and a bar while a long message is read."""

from tqdm.auto import tqdm

try:
    from rich.console import Console
except ImportError:  # it comes with Transformers, by way of typer
    Console = None


def show(text, dim=False):
    """Write `text` to stdout; in a terminal that can, dimmed on request."""
    if Console is None:
        print(text, end="", flush=True)
    else:
        Console().out(text, end="", style="dim" if dim else None, highlight=False)


class ReadingBar:
    """A bar on stderr while a long message is read. There is none where stderr is no terminal.

    It is what `StreamingChat.send` takes as `on_progress`, and closes itself at the end of its `with` block.
    """

    def __init__(self):
        self.bar = None

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, read, total):
        if self.bar is None:
            short = read >= total  # such a message is read at once
            self.bar = tqdm(desc="reading", total=total, unit=" tokens", leave=False, disable=short or None)
        self.bar.update(read - self.bar.n)
        if read >= total:
            self.bar.close()  # the answer begins in its line
