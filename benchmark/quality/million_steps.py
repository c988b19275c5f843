"""A stream of a million single-token steps, checked against the naive reference at points along the way.

The model is tiny and random, with weights that make its logits depend on every position. The reference is the one of
the tests, which rotates every key afresh. A query's logits depend only on the sinks and on the last layers x (window +
1) tokens, so the reference reads no others. A drift of rounding or of positions would show as a difference that grows,
and a leak as memory or time that grows.

Columns: steps, largest_difference (of the logits, whose standard deviation is about 1), ms_per_step (since the row
before), cache_bytes, rss (GiB).

Example:
    python benchmark/quality/million_steps.py --steps 1000000 --output benchmark/outputs/million_steps.csv
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import psutil
import torch
from tqdm import tqdm

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from benchmark.lib.common import build_parser, cache_bytes, fail, positive_int
from benchmark.lib.experiments import add_cache_arguments, check_sizes
from benchmark.lib.results import ResultsFile

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from references.naive import naive_logits  # noqa: E402
from support.helpers import TOLERANCE, VOCABULARY, tiny_llama  # noqa: E402

COLUMNS = ("steps", "largest_difference", "ms_per_step", "cache_bytes", "rss")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--steps", type=positive_int, default=1_000_000, help="(default: %(default)s)")
    add("--check_every", type=positive_int, default=10_000, metavar="STEPS", help="(default: %(default)s)")
    add_cache_arguments(parser, window_size=16)
    add("--rope", default="default", help="a rotary type of tests/support/helpers.py (default: %(default)s)")
    add("--output", type=Path, default=Path("benchmark/outputs/million_steps.csv"), help="(default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing CSV")
    return parser, parser.parse_args()


@torch.inference_mode()
def checked_steps(args: argparse.Namespace) -> Iterator[dict]:
    """Feed one random token at a time; yield a row per check."""
    sinks, window = args.attention_sink_size, args.window_size - args.attention_sink_size
    plain = tiny_llama(rope=args.rope)
    model = inject_attention_sinks(tiny_llama(rope=args.rope), sinks, window)
    cache = AttentionSinkKVCache(model)
    enough = (model.config.num_hidden_layers + 1) * (window + 1)
    first, recent = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    chance = torch.Generator().manual_seed(0)
    for begin in range(0, args.steps, args.check_every):
        tokens = torch.randint(VOCABULARY, (min(args.check_every, args.steps - begin),), generator=chance)
        began = perf_counter()
        for token in tokens.view(-1, 1, 1):
            logits = model(token, cache=cache).logits
        seconds = perf_counter() - began
        first = torch.cat([first, tokens])[:sinks]
        recent = torch.cat([recent, tokens])[-(sinks + enough) :]
        steps = begin + len(tokens)
        relevant = recent if steps <= sinks + enough else torch.cat([first, recent[sinks:]])
        expected = naive_logits(plain, relevant, sinks, window)[-1]
        yield {
            "steps": steps,
            "largest_difference": (logits[0, -1] - expected).abs().max().item(),
            "ms_per_step": 1000 * seconds / len(tokens),
            "cache_bytes": cache_bytes(cache),
            "rss": psutil.Process().memory_info().rss / 2**30,
        }


def main() -> None:
    parser, args = parse_args()
    results = ResultsFile(args.output, COLUMNS, {})
    try:
        check_sizes(args)
        if args.output.exists() and not args.overwrite:
            raise ValueError(f"{args.output} exists: pass --overwrite to replace it, or another --output.")
    except ValueError as error:
        fail(parser, error)
    worst = 0.0
    with results.open([]) as file, tqdm(total=args.steps, unit="step") as progress:
        for row in checked_steps(args):
            file.write([row])
            worst = max(worst, row["largest_difference"])
            progress.set_postfix({"difference": f"{worst:.1e}"})
            progress.update(row["steps"] - progress.n)
    print(f"{row['steps']:,} steps, largest difference {worst:.1e}, allowed are {TOLERANCE:.0e}: {args.output}")
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
