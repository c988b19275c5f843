"""Speed inside `generate`: steps at the start of a stream and far into it, and a batch beside its rows one by one.

Transformers appends every new token to all ids so far. The script measures what that costs at each length and subtracts
it; the rest should not depend on the length. Rounds alternate. Figures are medians over the rounds, with their range.

Example:
    python benchmark/speed/generate_speed.py --shape tiny --lengths 2000 100000
"""

import argparse
import copy
import statistics
from time import perf_counter

import torch

import attention_sinks
from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.experiments import add_cache_arguments, check_sizes
from benchmark.speed import contenders, timing
from benchmark.speed.shapes import SHAPES, build_shape


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="tiny", help="a Llama with random weights (default: %(default)s)")
    add("--lengths", type=positive_int, nargs="+", default=[2_000, 100_000], help="(default: %(default)s)")
    timing.add_timing_arguments(parser, rounds=9, steps=200)
    add("--rows", type=positive_int, default=8, help="rows of the batch (default: %(default)s)")
    add_cache_arguments(parser)
    return parser, parser.parse_args()


def cat_ms(ids: torch.Tensor, steps: int) -> float:
    """Median milliseconds of appending one token to `ids`."""
    token, times = ids[:, :1], []
    for _ in range(steps):
        start = perf_counter()
        torch.cat([ids, token], dim=-1)
        times.append(perf_counter() - start)
    return statistics.median(times) * 1000


def time_lengths(model, lengths: list[int], steps: int, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """(ms/token net of appending ids, ms of appending) at every length, in every round."""
    ids = {length: contenders.random_tokens(model, length + 1) for length in lengths}
    caches = {length: contenders.fill_with(model, ids[length][:, :-1]) for length in lengths}

    def net_and_appending(length: int) -> tuple[float, float]:
        clock = timing.Clock()
        timing.generate(model, ids[length], copy.deepcopy(caches[length]), steps, clock)
        appending = cat_ms(ids[length], steps)
        return clock.step_ms - appending, appending

    return timing.alternate(lengths, rounds, net_and_appending)


def time_batch(model, rows: int, steps: int, rounds: int, context: int) -> dict[str, list[float]]:
    """Tokens/s of a batch of `rows` and of its rows one after the other, each with a full cache, in every round."""
    ids = contenders.random_tokens(model, context + 1).expand(rows, -1).contiguous()
    batch = contenders.fill_with(model, ids[:, :-1])
    single = contenders.fill_with(model, ids[:1, :-1])
    ways = {
        f"a batch of {rows}": lambda: [(ids, copy.deepcopy(batch))],
        f"{rows} single rows": lambda: [(ids[:1], copy.deepcopy(single)) for _ in range(rows)],
    }

    def speed(name: str) -> float:
        calls = ways[name]()
        taken = timing.seconds(lambda: [timing.generate(model, *call, steps) for call in calls], model.device)
        return rows * steps / taken

    return timing.alternate(ways, rounds, speed)


def spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):9.3f} {unit} ({min(values):.3f} to {max(values):.3f})"


@torch.inference_mode()
def main() -> None:
    parser, args = parse_args()
    try:
        check_sizes(args)
    except ValueError as error:
        fail(parser, error)
    torch.set_num_threads(args.threads)
    window = args.window_size - args.attention_sink_size
    plain = build_shape(args.shape, "cpu", torch.float32, eos_token_id=None)
    model = attention_sinks.inject_attention_sinks(plain, args.attention_sink_size, window)
    print(f"{args.shape}, float32, CPU, {args.threads} threads, cache {args.attention_sink_size}+{window} full")
    times = time_lengths(model, args.lengths, args.steps, args.rounds)
    first = [net for net, _ in times[args.lengths[0]]]
    for length, values in times.items():
        net = [value for value, _ in values]
        ratio = timing.median_ratio(net, first)
        appending = statistics.median(value for _, value in values)
        print(f"after {length:>9,} tokens {spread(net, 'ms/token')}, x {ratio:.3f}; appending ids {appending:.3f} ms")
    for name, values in time_batch(model, args.rows, args.steps, args.rounds, 2 * args.window_size).items():
        print(f"{name:23}{spread(values, 'tokens/s')}")


if __name__ == "__main__":
    main()
