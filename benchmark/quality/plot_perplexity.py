"""Draw the CSV files of benchmark/quality/perplexity.py: one panel per feature, one line per experiment.

Features: perplexity (log of the overall perplexity), nll (moving average, nats per token), cache (size of the KV
cache), vram (CUDA memory; the process's memory where the run used no GPU), latency (moving average, per token).

Example:
    python benchmark/quality/plot_perplexity.py --output_dir benchmark/outputs --features nll cache --output figure.png
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.styles import (
    STYLES,
    add_figure_arguments,
    add_legend,
    dress,
    experiment_of,
    finish,
    label_length,
    make_styles,
    mark_length,
)

NEEDED = {"input_length", "nll", "overall_ppl", "cuda_vram_allocated", "latency"}
FEATURE_COLUMNS = {"cache": ("cache_bytes",)}  # not in the files of attention_sinks 0.4.0
LABELS = {
    "perplexity": "log perplexity\nso far",
    "nll": "NLL per token\n(nats, moving average)",
    "cache": "KV cache (MiB)",
    "vram": "memory (GiB)",
    "latency": "latency\n(ms per token)",
}


def mark(text: str) -> tuple[int, str]:
    """An argparse type: LENGTH=LABEL, a labelled position on the horizontal axis."""
    length, equals, label = text.partition("=")
    if not (equals and length.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not LENGTH=LABEL, such as '8192=trained length'")
    return int(length), label


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add_figure_arguments(parser)
    add = parser.add_argument
    add(
        "--output_dir",
        type=Path,
        default=Path("benchmark/outputs"),
        help="folder with the CSV files (default: %(default)s)",
    )
    add(
        "--runs",
        nargs="+",
        default=None,
        metavar="NAME",
        help="CSV files to draw, without .csv; a name that begins with an experiment's is drawn in its colour "
        "(default: all of them)",
    )
    add(
        "--features",
        nargs="+",
        choices=tuple(LABELS),
        default=["perplexity", "vram"],
        help="(default: perplexity vram)",
    )
    add(
        "--log_perplexity_limit",
        type=float,
        default=5.0,
        help="top of the perplexity and nll panels; lines that leave it are cut there (default: %(default)s)",
    )
    add(
        "--skip_first",
        type=int,
        default=100,
        help="tokens left out at the start, where every model is at its worst (default: %(default)s)",
    )
    add(
        "--average",
        type=positive_int,
        default=512,
        metavar="TOKENS",
        help="width of the moving average of nll and latency (default: %(default)s)",
    )
    add(
        "--mark",
        type=mark,
        nargs="+",
        default=[],
        metavar="LENGTH=LABEL",
        help="vertical lines, such as '8192=trained length'",
    )
    return parser, parser.parse_args()


def read_runs(folder: Path, names: list[str] | None, features: list[str], skip_first: int) -> dict[str, pd.DataFrame]:
    """Read the CSV files of a folder; known experiments come first, in a fixed order."""
    paths = [folder / f"{name}.csv" for name in names] if names else sorted(folder.glob("*.csv"))
    if not paths:
        raise ValueError(f"--output_dir {folder} holds no CSV file: run benchmark/quality/perplexity.py first.")
    needed = NEEDED | {column for feature in features for column in FEATURE_COLUMNS.get(feature, ())}
    order = [*STYLES, None]
    return {
        path.stem: _read(path, needed, skip_first)
        for path in sorted(paths, key=lambda path: order.index(experiment_of(path.stem)))
    }


def _read(path: Path, needed: set[str], skip_first: int) -> pd.DataFrame:
    """One run, after its first tokens."""
    try:
        frame = pd.read_csv(path)
    except ValueError as error:  # empty, torn, or no text at all
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if missing := sorted(needed - set(frame)):
        raise ValueError(f"{path} is not from perplexity.py: it has no column {', '.join(missing)}.")
    frame = frame[frame["input_length"] > skip_first]
    if frame.empty:
        raise ValueError(f"{path} has no row after --skip_first {skip_first}: lower it or run more tokens.")
    return frame


def values(frame: pd.DataFrame, feature: str, average: int) -> pd.Series:
    """One feature of one run, in the unit its panel names."""
    if feature == "perplexity":
        return frame["overall_ppl"].map(math.log)
    if feature == "cache":
        return frame["cache_bytes"] / 2**20
    if feature == "vram":
        on_gpu = frame["cuda_vram_allocated"].max() > 0
        return frame["cuda_vram_allocated"] if on_gpu or "rss" not in frame else frame["rss"]
    column = frame["nll"] if feature == "nll" else frame["latency"] * 1000
    tokens_per_row = frame["input_length"].diff().median() if len(frame) > 1 else 1
    rows = max(1, round(average / tokens_per_row))
    return column.rolling(rows, min_periods=(rows + 1) // 2).mean()


def draw(runs: dict[str, pd.DataFrame], args: argparse.Namespace) -> plt.Figure:
    """One panel per feature over a shared horizontal axis; the scores' panel is the tallest."""
    heights = [1.6 if feature in ("perplexity", "nll") else 1 for feature in args.features]
    figure, panels = plt.subplots(
        len(heights),
        sharex=True,
        squeeze=False,
        layout="constrained",
        figsize=(9, 1 + 2.2 * sum(heights)),
        height_ratios=heights,
    )
    styles = make_styles(list(runs))
    for panel, feature in zip(panels[:, 0], args.features, strict=True):
        for name, frame in runs.items():
            panel.plot(frame["input_length"], values(frame, feature, args.average), linewidth=1.8, **styles[name])
        finish_panel(panel, feature, args)
    add_legend(figure, panels[0, 0])
    for length, label in args.mark:
        label_length(panels[0, 0], length, label)
    panels[-1, 0].set_xlabel("tokens read")
    return figure


def finish_panel(panel: plt.Axes, feature: str, args: argparse.Namespace) -> None:
    """Axis limits, labels, grid and marks of one panel."""
    if feature in ("perplexity", "nll"):
        panel.set_ylim(top=min(args.log_perplexity_limit, panel.get_ylim()[1]))
    else:
        panel.set_ylim(bottom=0)
    panel.set_ylabel(LABELS[feature])
    panel.xaxis.set_major_formatter("{x:,.0f}")
    dress(panel)
    panel.margins(x=0.01)
    for length, _ in args.mark:
        mark_length(panel, length)


def main() -> None:
    parser, args = parse_args()
    try:
        runs = read_runs(args.output_dir, args.runs, args.features, args.skip_first)
        finish(lambda: draw(runs, args), args.output, args.title)
    except (OSError, ValueError) as error:
        fail(parser, error)


if __name__ == "__main__":
    main()
