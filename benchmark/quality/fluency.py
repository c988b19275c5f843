r"""How many answers of a long chat are still language: logs of demo/streaming.py, judged by two published rules.

An answer is lost if it holds fewer than 3 different English words (tokenised with NLTK, lower case), or if it is longer
than 1,000 tokens and made of fewer than 26 different characters. The rules are those of the attention_sinks blog post;
they are rough: they see gibberish, not bad sense. So answers that say, but for numbers, what an earlier one said are
counted beside them.

Columns of the CSV: experiment, response (1 is the first), tokens, real_words, distinct_characters, lost (0 or 1),
repeated (0 or 1).

Example:
    python demo/streaming.py --experiment windowed --json_log benchmark/outputs/chat/windowed.jsonl
    python benchmark/quality/fluency.py benchmark/outputs/chat/*.jsonl --plot benchmark/outputs/fluency.png
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from benchmark.data.words import load_words
from benchmark.lib.common import build_parser, fail
from benchmark.lib.styles import STYLES, add_legend, dress, finish, make_styles
from benchmark.quality.chat_log import ChatLog, read_chat_log

FEWEST_WORDS = 3
LONG_RESPONSE, FEWEST_CHARACTERS = 1000, 26


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add(
        "logs",
        type=Path,
        nargs="+",
        help="of demo/streaming.py --json_log, one per experiment; the last run in each counts",
    )
    add("--output", type=Path, default=Path("benchmark/outputs/fluency.csv"), help="(default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing CSV")
    add("--plot", type=Path, default=None, help="write the cumulative counts to a .png or .svg")
    add("--title", default=None)
    add(
        "--words",
        type=Path,
        default=None,
        help="file with an English word per line (default: NLTK's corpus, a system dictionary or the package "
        "english-words, whichever is there)",
    )
    return parser, parser.parse_args()


def judge(answer: str, words: frozenset[str]) -> dict:
    """The numbers both rules look at, and their verdict."""
    from nltk.tokenize import word_tokenize

    tokens = word_tokenize(answer.lower(), preserve_line=True)  # without sentences, for which NLTK needs data
    real_words, characters = len(words.intersection(tokens)), len(set(answer))
    lost = real_words < FEWEST_WORDS or (len(tokens) > LONG_RESPONSE and characters < FEWEST_CHARACTERS)
    counts = {"tokens": len(tokens), "real_words": real_words, "distinct_characters": characters}
    return {**counts, "lost": int(lost)}


def judge_all(answers: list[str], words: frozenset[str]) -> Iterator[dict]:
    """One row per answer."""
    said = set()
    for number, answer in enumerate(answers, start=1):
        letters = "".join(filter(str.isalpha, answer.lower()))
        yield {"response": number, **judge(answer, words), "repeated": int(letters in said)}
        said.add(letters)


def read_logs(paths: list[Path]) -> dict[str, ChatLog]:
    """The logs by experiment, in the order of all figures."""
    logs = {}
    for path in paths:
        log = read_chat_log(path)
        if log.experiment in logs:
            raise ValueError(f"{path} is a second log of the experiment {log.experiment}; give one per experiment.")
        if log.runs > 1:
            print(f"{path} holds {log.runs} runs; the last one is read.", file=sys.stderr)
        logs[log.experiment] = log
    return {experiment: logs[experiment] for experiment in STYLES if experiment in logs}


def draw(frame: pd.DataFrame) -> plt.Figure:
    """Cumulative counts of lost answers and of repeated ones."""
    figure, panels = plt.subplots(ncols=2, layout="constrained", figsize=(10, 4))
    styles = make_styles(list(frame["experiment"].unique()))
    for panel, column, label in zip(panels, ("lost", "repeated"), ("answers lost", "answers repeated"), strict=True):
        for experiment, answers in frame.groupby("experiment", sort=False):
            counts = answers.set_index("response")[column].cumsum()
            panel.plot(counts, drawstyle="steps-post", linewidth=1.8, **styles[experiment])
        top = max(5, panel.get_ylim()[1])
        panel.set(xlabel="answers given", ylabel=f"{label}, so far", xlim=0, ylim=(-0.03 * top, top))
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        dress(panel)
    add_legend(figure, panels[0])
    return figure


def main() -> None:
    parser, args = parse_args()
    try:
        if args.output.exists() and not args.overwrite:
            raise ValueError(f"{args.output} exists: pass --overwrite to replace it, or another --output.")
        logs = read_logs(args.logs)
        words, source = load_words(args.words)
        print(f"{len(words):,} English words from {source}")
        rows = [
            {"experiment": experiment, **row}
            for experiment, log in logs.items()
            for row in judge_all(log.answers, words)
        ]
        frame = pd.DataFrame(rows)
        if args.plot:
            finish(lambda: draw(frame), args.plot, args.title)
    except (OSError, ValueError) as error:
        fail(parser, error)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.output, index=False)
    answers = frame.groupby("experiment", sort=False)
    print(answers.agg(answers=("response", "size"), lost=("lost", "sum"), repeated=("repeated", "sum")))
    print(args.output)


if __name__ == "__main__":
    main()
