"""How figures look: one colour per experiment in all of them, told apart with every kind of colour vision."""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

# Okabe and Ito's colours; the dashes tell the lines apart in print.
STYLES = {
    "attention_sinks": ("attention sinks", "#0072B2", "-"),
    "windowed": ("window attention", "#E69F00", "--"),
    "transformers": ("dense attention (Transformers)", "#333333", "-."),
    "recompute": ("sliding window, recomputed", "#CC79A7", ":"),
}
SPARE_COLOURS = ("#009E73", "#D55E00", "#56B4E9", "#F0E442")


def experiment_of(name: str) -> str | None:
    """The experiment that a run's name begins with."""
    return next((experiment for experiment in STYLES if name.startswith(experiment)), None)


def make_styles(names: list[str]) -> dict[str, dict]:
    """Label and look of every run; a second run of the same experiment is paler."""
    spare, seen, styles = iter(SPARE_COLOURS * len(names)), [], {}
    for name in names:
        experiment = experiment_of(name)
        label, colour, dashes = STYLES[experiment] if experiment else (name, next(spare), "-")
        if experiment and (variant := name.removeprefix(experiment).strip("_-")):
            label += f" ({variant.replace('_', ' ')})"
        alpha = (1, 0.6, 0.35)[min(seen.count(experiment), 2)] if experiment else 1
        seen.append(experiment)
        styles[name] = {"label": label, "color": colour, "linestyle": dashes, "alpha": alpha}
    return styles


def add_figure_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every script that draws: the title, and where the figure goes."""
    parser.add_argument("--title", default=None)
    parser.add_argument("--output", type=Path, default=None, help="write a .png or .svg instead of opening a window")


def dress(panel: plt.Axes) -> None:
    """Give a panel its grid, and no frame."""
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def mark_length(panel: plt.Axes, length: int) -> None:
    """Draw a vertical line at a length in tokens."""
    panel.axvline(length, color="#999999", linewidth=1, linestyle=(0, (1, 2)))


def label_length(panel: plt.Axes, length: int, label: str) -> None:
    """Write above a panel what a marked length is."""
    at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "color": "#666666", "fontsize": 9}
    panel.annotate(label, (length, 1), xytext=(0, 4), ha="center", **at)


def add_legend(figure: plt.Figure, panel: plt.Axes) -> None:
    """Name the lines of `panel` below the figure."""
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def finish(draw: Callable[[], plt.Figure], output: Path | None, title: str | None) -> None:
    """Draw a figure with its title into a .png or .svg file, or into a window.

    Raises
    ------
    ValueError
        When the file has another suffix, or there is no display to open a window on.
    """
    if output is not None:
        matplotlib.use("Agg")
    elif matplotlib.get_backend().lower() == "agg":
        raise ValueError("there is no display to open a window on: pass --output FILE.png")
    figure = draw()
    if title:
        figure.suptitle(title)
    if output is None:
        plt.show()
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    print(output)
