"""The picture of a cache: sinks, what has been forgotten, and the window."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import SinkSettings


@dataclass(frozen=True)
class CachePicture:
    """What there is to see of the cache of one conversation.

    Attributes
    ----------
    sizes : SinkSettings
        S and W.
    tokens_seen : int
        Tokens of the conversation, those that are forgotten included.
    nbytes : int
        Bytes of the cache; 0 where they are not known.
    tokens_per_second : float
        Tokens of the answer by second; 0 where none is made.
    whole_turns : list of int
        The numbers, from 1, of the turns of which nothing has been forgotten.
    turns : int
        How many turns there were.
    """

    sizes: SinkSettings
    tokens_seen: int = 0
    nbytes: int = 0
    tokens_per_second: float = 0.0
    whole_turns: tuple[int, ...] = ()
    turns: int = 0

    @property
    def tokens_forgotten(self) -> int:
        """Tokens that were in the cache and no longer are."""
        return max(0, self.tokens_seen - self.sizes.sink_size - self.sizes.window_size)

    @property
    def html(self) -> str:
        """The picture: a bar of three parts, and the numbers. Classes are those of `STYLE`."""
        sinks = min(self.tokens_seen, self.sizes.sink_size)
        window = max(0, min(self.tokens_seen - sinks, self.sizes.window_size))
        forgotten = self.tokens_forgotten
        fill = 100 * window / self.sizes.window_size
        numbers = {
            "tokens seen": f"{self.tokens_seen:,}",
            "sinks": f"{sinks:,} of {self.sizes.sink_size:,}",
            "forgotten": f"{forgotten:,}",
            "window": f"{window:,} of {self.sizes.window_size:,}",
            "memory": _bytes(self.nbytes),
            "speed": f"{self.tokens_per_second:.1f} tokens/s" if self.tokens_per_second else "–",
            "kept whole": self._kept_whole,
        }
        rows = "".join(
            f'<div class="{name.replace(" ", "-")}"><dt>{name}</dt><dd>{value}</dd></div>'
            for name, value in numbers.items()
        )
        told = f"{sinks:,} sinks, {forgotten:,} tokens forgotten, {window:,} tokens in the window"
        return (
            f'<figure class="cache" role="img" aria-label="{told}"><div class="bar">'
            f'<span class="part-sinks{"" if sinks else " empty"}">sinks</span>'
            f'<span class="part-forgotten{"" if forgotten else " empty"}">{forgotten:,} forgotten</span>'
            f'<span class="part-window" style="--fill: {fill:.1f}%">window</span>'
            f"</div></figure><dl class='cache-numbers'>{rows}</dl>"
        )

    @property
    def _kept_whole(self) -> str:
        """Which turns are kept whole, as a person would say it."""
        if not self.turns:
            return "–"
        if not self.whole_turns:
            return "no turn"
        first, last = self.whole_turns[0], self.whole_turns[-1]
        return f"turn {last}" if first == last else f"turns {first} to {last}"


def _bytes(count: int) -> str:
    """Return a number of bytes as a person reads it; 0 is unknown."""
    if not count:
        return "–"
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


STYLE = """
#chat button[aria-label="Clear"], #chat button[title="Clear"] { display: none; }
#model h1 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
.cache { margin: 0; }
.cache .bar { display: flex; gap: 3px; height: 2rem; font-size: 0.8rem; }
.cache .bar span { display: flex; align-items: center; justify-content: center; border-radius: 4px; overflow: hidden;
  white-space: nowrap; padding: 0 0.5rem; color: var(--body-text-color); }
.cache .part-sinks { background: #e0a33a; color: #1c1917 !important; }
.cache .part-forgotten { border: 1px dashed var(--body-text-color-subdued); color: var(--body-text-color); }
.cache .part-window { flex: 1; border: 1px solid #3b82c4;
  background: linear-gradient(90deg, #9cc7ec66 var(--fill), transparent var(--fill)); }
.cache .part-sinks.empty { opacity: 0.35; }
.cache .part-forgotten.empty { display: none !important; }
.cache-numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: 0.25rem 1rem;
  margin: 0.5rem 0 0; font-size: 0.85rem; }
.cache-numbers dt { opacity: 0.75; }
.cache-numbers dd { margin: 0; font-variant-numeric: tabular-nums; }
"""
