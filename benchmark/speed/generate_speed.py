"""Speed inside `generate`: steps at the start of a stream beside steps far into it, a batch beside its rows one by one.

Transformers appends every new token to all ids so far. What that costs at each length is measured on its own and
subtracted; the rest should not depend on the length. Rounds alternate; medians over the rounds, with their range.

Example:
    python benchmark/speed/generate_speed.py --shape tiny --lengths 2000 100000
"""

import argparse
import copy
import statistics
from time import perf_counter

import torch
from transformers.generation.streamers import BaseStreamer

import attention_sinks
from attention_sinks.versions import CACHE
from benchmark.lib.common import positive_int
from benchmark.speed import contenders, timing
from benchmark.speed.shapes import SHAPES, build_shape


class Clock(BaseStreamer):
    """Notes when `generate` hands out a token."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(perf_counter())

    def end(self):
        pass

    @property
    def step_ms(self) -> float:
        """Median milliseconds between two tokens, the first step of the call left out."""
        steps = [later - earlier for earlier, later in zip(self.times[2:], self.times[3:], strict=False)]
        return statistics.median(steps) * 1000


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="tiny", help="a Llama with random weights (default: %(default)s)")
    add("--lengths", type=positive_int, nargs="+", default=[2_000, 100_000], help="(default: %(default)s)")
    add("--steps", type=positive_int, default=200, help="tokens generated per round (default: %(default)s)")
    add("--rounds", type=positive_int, default=9, help="(default: %(default)s)")
    add("--rows", type=positive_int, default=8, help="rows of the batch (default: %(default)s)")
    add("--window_size", type=positive_int, default=1024, help="sinks included (default: %(default)s)")
    add("--attention_sink_size", type=int, default=4, help="(default: %(default)s)")
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch (default: %(default)s)")
    return parser


def generate(model, ids, cache, steps: int, clock: Clock | None = None) -> None:
    """`steps` tokens on from `ids`, all but the last of which `cache` has seen."""
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **{CACHE: cache},
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        streamer=clock,
    )


def cat_ms(ids: torch.Tensor, steps: int) -> float:
    """Median milliseconds of appending one token to `ids`."""
    token, times = ids[:, :1], []
    for _ in range(steps):
        start = perf_counter()
        torch.cat([ids, token], dim=-1)
        times.append(perf_counter() - start)
    return statistics.median(times) * 1000


def time_lengths(model, lengths: list[int], steps: int, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """(ms/token net of appending ids, ms of appending) at every length, in every round; round 0 is dropped."""
    ids = {length: contenders.random_tokens(model, length + 1) for length in lengths}
    caches = {length: contenders.fill_with(model, ids[length][:, :-1]) for length in lengths}
    times = {length: [] for length in lengths}
    for number in range(rounds + 1):
        for length in timing.rotated(times, number):
            clock = Clock()
            generate(model, ids[length], copy.deepcopy(caches[length]), steps, clock)
            appending = cat_ms(ids[length], steps)
            times[length].append((clock.step_ms - appending, appending))
    return {length: values[1:] for length, values in times.items()}


def time_batch(model, rows: int, steps: int, rounds: int, context: int) -> dict[str, list[float]]:
    """Tokens/s of a batch of `rows` and of its rows one after the other, each with a full cache, in every round."""
    ids = contenders.random_tokens(model, context + 1).expand(rows, -1).contiguous()
    batch = contenders.fill_with(model, ids[:, :-1])
    single = contenders.fill_with(model, ids[:1, :-1])
    ways = {
        f"a batch of {rows}": lambda: [(ids, copy.deepcopy(batch))],
        f"{rows} single rows": lambda: [(ids[:1], copy.deepcopy(single)) for _ in range(rows)],
    }
    speeds = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in timing.rotated(ways, number):
            calls = ways[name]()
            taken = timing.seconds(lambda calls=calls: [generate(model, *call, steps) for call in calls], model.device)
            speeds[name].append(rows * steps / taken)
    return {name: values[1:] for name, values in speeds.items()}


def spread(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):9.3f} {unit} ({min(values):.3f} to {max(values):.3f})"


@torch.inference_mode()
def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    window = args.window_size - args.attention_sink_size
    model = attention_sinks.inject_attention_sinks(
        build_shape(args.shape, "cpu", torch.float32), args.attention_sink_size, window
    )
    model.generation_config.eos_token_id = None
    print(f"{args.shape}, float32, CPU, {args.threads} threads, cache {args.attention_sink_size}+{window} full")
    times = time_lengths(model, args.lengths, args.steps, args.rounds)
    first = [net for net, _ in times[args.lengths[0]]]
    for length, values in times.items():
        net = [value for value, _ in values]
        ratio = statistics.median(a / b for a, b in zip(net, first, strict=True))
        appending = statistics.median(value for _, value in values)
        print(f"after {length:>9,} tokens {spread(net, 'ms/token')}, x {ratio:.3f}; appending ids {appending:.3f} ms")
    for name, values in time_batch(model, args.rows, args.steps, args.rounds, 2 * args.window_size).items():
        print(f"{name:23}{spread(values, 'tokens/s')}")


if __name__ == "__main__":
    main()
