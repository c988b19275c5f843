"""Draw the CSV files of benchmark/quality/recall.py: right answers by distance, and by the length of the stream.

Example:
    python benchmark/quality/plot_recall.py --output_dir benchmark/outputs/recall --window_size 1024 --output recall.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.styles import (
    STYLES,
    add_figure_arguments,
    add_legend,
    dress,
    finish,
    label_length,
    make_styles,
    mark_length,
)

NEEDED = {"stream_tokens", "distance_lines", "distance_tokens", "correct"}


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("benchmark/outputs/recall"), help="(default: %(default)s)")
    add(
        "--window_size",
        type=positive_int,
        default=None,
        help="marks the size of the cache; the right panel then counts only what lies within it",
    )
    add("--bin", type=positive_int, default=2048, metavar="TOKENS", help="of the right panel (default: %(default)s)")
    add_figure_arguments(parser)
    return parser, parser.parse_args()


def read_runs(folder: Path) -> dict[str, pd.DataFrame]:
    """The CSV files of a folder, in the order of the experiments."""
    runs = {name: pd.read_csv(folder / f"{name}.csv") for name in STYLES if (folder / f"{name}.csv").exists()}
    if not runs:
        raise ValueError(f"--output_dir {folder} holds no <experiment>.csv: run benchmark/quality/recall.py first.")
    for name, frame in runs.items():
        if missing := sorted(NEEDED - set(frame)):
            raise ValueError(f"{folder / name}.csv is not from recall.py: it has no column {', '.join(missing)}.")
    return runs


def by_distance(frame: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers per distance asked for, at the mean distance in tokens."""
    return frame.groupby(frame["distance_lines"] // 10)[["distance_tokens", "correct"]].mean()


def by_length(frame: pd.DataFrame, width: int) -> pd.Series:
    """Share of right answers per `width` tokens of the stream, at the middle of each."""
    return frame.groupby((frame["stream_tokens"] // width + 0.5) * width)["correct"].mean()


def draw(runs: dict[str, pd.DataFrame], args: argparse.Namespace) -> plt.Figure:
    figure, (distance, length) = plt.subplots(ncols=2, sharey=True, layout="constrained", figsize=(10, 4))
    styles = make_styles(list(runs))
    for name, frame in runs.items():
        shares = by_distance(frame)
        distance.plot(shares["distance_tokens"], shares["correct"] * 100, marker="o", **styles[name])
        within = frame[frame["distance_tokens"] < args.window_size] if args.window_size else frame
        length.plot(by_length(within, args.bin) * 100, marker="o", **styles[name])
    if args.window_size:
        mark_length(distance, args.window_size)
        label_length(distance, args.window_size, "cache")
    distance.set(xlabel="tokens between a number and its query", ylabel="numbers recalled (%)", ylim=(-3, 103))
    length.set(xlabel="tokens read" + (" (numbers within the cache)" if args.window_size else ""))
    for panel in (distance, length):
        panel.xaxis.set_major_formatter("{x:,.0f}")
        dress(panel)
        panel.set_xlim(left=0)
    add_legend(figure, distance)
    return figure


def main() -> None:
    parser, args = parse_args()
    try:
        runs = read_runs(args.output_dir)
        finish(lambda: draw(runs, args), args.output, args.title)
    except (OSError, ValueError) as error:
        fail(parser, error)


if __name__ == "__main__":
    main()
