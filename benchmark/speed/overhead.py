"""What this library's own Python costs per step: a model so small that only overhead counts.

A random Llama of 30 layers with a hidden size of 64 makes eager steps of one token, with attention sinks (cache 4+60)
and as plain Transformers runs it (DynamicCache). Both steps begin with 64 tokens in the cache: the plain cache is cut
back to 64 tokens before every step, outside the timed part. A second line says the same of the steps inside greedy
`generate`, where the plain cache grows from half the steps below 64 tokens to half the steps above.

The two alternate in one process. A round gives the median of its steps. The script prints the median, the fastest and
the slowest round, and the median over the rounds of the ratio within a round. Nothing else should run meanwhile.

Example:
    python benchmark/speed/overhead.py --rounds 15 --steps 40
"""

import argparse
import copy
import statistics
from pathlib import Path

import torch

import attention_sinks
from benchmark.lib.common import build_parser, positive_int
from benchmark.lib.results import write_csv
from benchmark.speed import timing
from benchmark.speed.contenders import Dense, Streaming, fill_with, random_tokens, share_weights
from benchmark.speed.shapes import build_shape

SINKS, WINDOW = 4, 60
CONTEXT = SINKS + WINDOW
OURS, PLAIN = "attention_sinks", "transformers"
COLUMNS = ("measure", "contender", "median_ms", "low_ms", "high_ms", "ratio", "rounds", "steps", "threads", "layers")


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__)
    add = parser.add_argument
    timing.add_timing_arguments(parser, rounds=15, steps=40)
    add("--layers", type=positive_int, default=30, help="layers of the model (default: %(default)s)")
    add("--output", type=Path, default=None, help="write the figures to this CSV file as well; it is replaced")
    return parser.parse_args()


def build_models(layers: int) -> dict[str, torch.nn.Module]:
    """The same random Llama with attention sinks and without."""
    plain = build_shape("tiny", "cpu", torch.float32, num_hidden_layers=layers, eos_token_id=None)
    return {OURS: attention_sinks.inject_attention_sinks(share_weights(plain), SINKS, WINDOW), PLAIN: plain}


def time_steps(models: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms of a forward call over one token, in every round."""
    contenders = {OURS: Streaming(models[OURS], CONTEXT, rows=1), PLAIN: Dense(models[PLAIN], CONTEXT, rows=1)}
    return timing.time_steps(contenders, models[PLAIN], 1, rounds, steps)


def time_generate(models: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms between two tokens of greedy `generate`, in every round."""
    lengths = {OURS: 2 * CONTEXT, PLAIN: max(1, CONTEXT - steps // 2)}
    ids = {name: random_tokens(models[name], length + 1) for name, length in lengths.items()}
    caches = {name: fill_with(models[name], ids[name][:, :-1]) for name in models}

    def median_ms(name: str) -> float:
        clock = timing.Clock()
        timing.generate(models[name], ids[name], copy.deepcopy(caches[name]), steps + 2, clock)
        return clock.step_ms

    return timing.alternate(models, rounds, median_ms)


def summaries(measure: str, times: dict[str, list[float]]) -> list[dict]:
    """One row per contender: median, fastest and slowest round in ms, and the ratio to plain Transformers."""
    return [
        {
            "measure": measure,
            "contender": name,
            "median_ms": statistics.median(values),
            "low_ms": min(values),
            "high_ms": max(values),
            "ratio": timing.median_ratio(values, times[PLAIN]),
        }
        for name, values in times.items()
    ]


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    models = build_models(args.layers)
    print(f"Llama of {args.layers} layers, hidden size 64, float32, cache {SINKS}+{WINDOW}, {args.threads} threads")
    rows = summaries("forward", time_steps(models, args.rounds, args.steps))
    rows += summaries("generate", time_generate(models, args.rounds, args.steps))
    print(f"{'ms/token':10}{'contender':17}{'median':>8}{'low':>8}{'high':>8}{'ratio':>8}")
    for row in rows:
        numbers = f"{row['median_ms']:8.2f}{row['low_ms']:8.2f}{row['high_ms']:8.2f}{row['ratio']:8.3f}"
        print(f"{row['measure']:10}{row['contender']:17}{numbers}")
    if args.output:
        facts = {name: getattr(args, name) for name in ("rounds", "steps", "threads", "layers")}
        write_csv(args.output, COLUMNS, [row | facts for row in rows])
        print(args.output)


if __name__ == "__main__":
    main()
