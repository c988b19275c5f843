r"""Perplexity, memory and latency of a model along one long text, written row by row to <output_dir>/<name>.csv.

Columns: input_length (tokens scored so far), nll (nats per token), ppl = exp(nll), overall_ppl (from the start of the
text), cuda_vram_allocated (GiB, 0 without CUDA), latency (seconds per token), cache_bytes, rss (GiB, the process).
The settings of the run are kept beside it in <name>.json.

Example, without any network once the model is there:
    python benchmark/quality/perplexity.py --model_name_or_path models/SmolLM2-135M-Instruct \
        --dataset_name python-docs --chunk_size 1024
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
import transformers
from tqdm import tqdm

from benchmark.data.corpus import CorpusError, add_corpus_arguments, read_tokens
from benchmark.lib.common import build_parser, cache_bytes, device_and_dtype, fail, positive_int
from benchmark.lib.experiments import add_model_arguments, check_sizes, load_model, load_tokenizer
from benchmark.lib.results import ResultsFile
from benchmark.lib.scoring import ScoredCall, recomputed_scores, stream_scores

COLUMNS = ("input_length", "nll", "ppl", "overall_ppl", "cuda_vram_allocated", "latency", "cache_bytes", "rss")
GIB = 2**30
# The options that rows of one file have in common; the text may be read further, and elsewhere.
SETTINGS = (
    *("experiment", "model_name_or_path", "revision", "dataset_name", "data_column", "task", "split", "num_samples"),
    *("window_size", "attention_sink_size", "cache_dtype", "dtype", "chunk_size", "report_every"),
)


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_model_arguments(parser)
    add_corpus_arguments(parser, num_tokens=8192)
    add("--output_dir", type=Path, default=Path("benchmark/outputs"), help="(default: %(default)s)")
    add("--name", default=None, help="name of the CSV file without .csv (default: the experiment)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing CSV")
    existing.add_argument(
        "--resume",
        action="store_true",
        help="go on where an existing CSV ends; what it covers is read again in long calls, which changes no score",
    )
    add(
        "--chunk_size",
        type=positive_int,
        default=1,
        help="tokens per model call; 1 measures the latency of generation, larger calls give the same nll an order "
        "faster; with --experiment recompute, windows per call (default: %(default)s)",
    )
    add(
        "--report_every",
        type=positive_int,
        default=1,
        metavar="N",
        help="one CSV row per N tokens, for a smaller file; nll and latency are then the mean of those N tokens "
        "(default: %(default)s)",
    )
    args = parser.parse_args()
    args.name = args.name or args.experiment
    return parser, args


def settings_of(args: argparse.Namespace) -> dict:
    dtype = str(device_and_dtype(args.device, args.dtype)[1]).removeprefix("torch.")
    return {**{name: getattr(args, name) for name in SETTINGS}, "dtype": dtype}


def score(model, input_ids: torch.Tensor, args: argparse.Namespace, start: int) -> Iterator[ScoredCall]:
    if args.experiment == "recompute":
        return recomputed_scores(model, input_ids, args.window_size, args.chunk_size, start)
    return stream_scores(model, input_ids, args.chunk_size, start)


def memory_now(cache) -> dict[str, float]:
    """The memory columns of a row."""
    return {
        "cuda_vram_allocated": sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count()))) / GIB,
        "cache_bytes": cache_bytes(cache),
        "rss": psutil.Process().memory_info().rss / GIB,
    }


def make_rows(calls: Iterable[ScoredCall], report_every: int, total: int, done: int, nll_sum: float) -> Iterator[list]:
    """Turn each call into its CSV rows; tokens short of a row wait for the next call, `done` were there before."""
    waiting = []
    for call in calls:
        waiting += [(nll, call.seconds) for nll in call.nlls]
        memory, rows = memory_now(call.cache), []
        while len(waiting) >= report_every or (waiting and done + len(waiting) == total):
            block, waiting = waiting[:report_every], waiting[report_every:]
            done += len(block)
            nll = sum(nll for nll, _ in block) / len(block)
            nll_sum += nll * len(block)
            seconds = sum(latency for _, latency in block) / len(block)
            scores = {"nll": nll, "ppl": _exp(nll), "overall_ppl": _exp(nll_sum / done), "latency": seconds}
            rows.append({"input_length": done, **scores, **memory})
        yield rows


def _exp(nll: float) -> float:
    """exp(nll), infinite where a float cannot hold it."""
    return math.exp(nll) if nll < 700 else math.inf


def rows_to_keep(rows: list[dict], report_every: int) -> list[dict]:
    """The rows of an earlier run, without the shorter one that a finished run may end in."""
    return rows[:-1] if rows and rows[-1]["input_length"] % report_every else rows


def run(args: argparse.Namespace, results: ResultsFile, before: list[dict], input_ids: torch.Tensor, model) -> None:
    """Score what `before` does not cover, writing rows as they come."""
    total, done = input_ids.shape[1] - 1, int(before[-1]["input_length"]) if before else 0
    nll_sum = done * math.log(before[-1]["overall_ppl"]) if before else 0.0
    calls = score(model, input_ids, args, done)
    with results.open(before) as file, tqdm(total=total, initial=done, unit="tok") as progress:
        try:
            for rows in make_rows(calls, args.report_every, total, done, nll_sum):
                file.write(rows)
                if rows:
                    progress.set_postfix({"nll": f"{rows[-1]['nll']:.3f}", "ppl": f"{rows[-1]['overall_ppl']:.2f}"})
                    progress.update(rows[-1]["input_length"] - progress.n)
        except KeyboardInterrupt:
            progress.close()
            print(f"Interrupted: {results.path} holds {progress.n} tokens; --resume goes on.", file=sys.stderr)
            sys.exit(130)
    print(f"{total} tokens, overall perplexity {rows[-1]['overall_ppl']:.3f}: {results.path}")


def main() -> None:
    parser, args = parse_args()
    results = ResultsFile(args.output_dir / f"{args.name}.csv", COLUMNS, settings_of(args))
    try:
        check_sizes(args)
        if args.num_tokens < 2:
            raise ValueError("--num_tokens must be at least 2: the first token is only read, never predicted.")
        before = results.check(args.overwrite, args.resume)
        if before and before[-1]["input_length"] >= args.num_tokens - 1:
            print(f"{results.path} is complete: {before[-1]['input_length']:.0f} tokens.")
            return
        input_ids = read_tokens(args, load_tokenizer(args))
        model = load_model(args)
    except (CorpusError, OSError, ValueError) as error:
        fail(parser, error)
    run(args, results, rows_to_keep(before, args.report_every), input_ids, model)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()  # "longer than the model's length" is the point here
    main()
