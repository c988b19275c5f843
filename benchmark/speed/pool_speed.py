"""Speed of a `StreamPool`: steps of many conversations, answers while another one reads, and sessions that wake.

steps    ms per step and tokens/s while 1, 8 or 32 conversations answer, beside a loop over the model with one cache of
         as many rows, the linear layers alone, and one reading of all bytes of such a cache.
reading  how long a token takes while one conversation reads a long message, beside the same without a reader, for
         every --chunk_sizes: the 95th percentile over all tokens of the others, and how fast the message is read.
waking   milliseconds until a conversation that lies in a folder can go on, in a pool that has not seen it.

All caches are full, and the rows differ in length as those of a pool do. Contenders alternate in one process. Figures
are medians over the rounds, with the fastest and the slowest round; ratios are medians of the ratio within a round.
Nothing else should run meanwhile.

Examples:
    python benchmark/speed/pool_speed.py --compiled
    python benchmark/speed/pool_speed.py --measures reading --chunk_sizes 8 16 32 64 128
    bash benchmark/scripts/pool.sh    # with ten thousand joins and leaves of speed/pool_joins.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers

import attention_sinks
from attention_sinks.command.quiet import quiet_libraries
from attention_sinks.versions import CACHE
from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.experiments import add_cache_arguments, check_sizes
from benchmark.lib.results import write_csv
from benchmark.speed import timing
from benchmark.speed.contenders import LinearLayers, fill, random_tokens
from benchmark.speed.pools import Reader, Talkers, pool_of, ragged_cache, waking_ms
from benchmark.speed.shapes import SHAPES, build_shape

MEASURES = ("steps", "reading", "waking")
COLUMNS = (
    "measure",
    "contender",
    "conversations",
    "unit",
    "median",
    "low",
    "high",
    "rounds",
    "tokens_per_second",
    "vs_one",
    "vs_loop",
    "vs_no_reader",
    "read_per_second",
    "session_bytes",
    "model",
    "dtype",
    "threads",
    "attention_sink_size",
    "window_size",
    "torch_version",
    "transformers_version",
)
POOL, COMPILED, LOOP, LINEAR, READ = "pool", "pool compiled", "loop", "linear_layers", "cache read"
LINE = "{:9} {:22} {:>4} {:>9} {:>9} {:>9} {:10} {:>9} {:>8} {:>8} {:>9}"


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="smollm2-135m", help="random weights (default: %(default)s)")
    add("--measures", choices=MEASURES, nargs="+", default=list(MEASURES), help="(default: all)")
    add("--conversations", type=positive_int, nargs="+", default=[1, 8, 32], help="(default: %(default)s)")
    add("--compiled", action="store_true", help="pools with compile=True as well, as many rows as conversations")
    add("--conversations_beside", type=positive_int, default=7, help="those that answer beside the reader (default: 7)")
    add("--reading", type=positive_int, default=8192, help="tokens of the long message (default: %(default)s)")
    add("--chunk_sizes", type=positive_int, nargs="+", default=[16, 32, 64], help="(default: %(default)s)")
    add_cache_arguments(parser, 512)
    timing.add_timing_arguments(parser, rounds=7, steps=16)
    add("--output", type=Path, default=None, help="CSV file, replaced if it exists (default: in outputs/speed)")
    return parser, parser.parse_args()


# ---- what takes part


class PoolSteps:
    """Steps of a pool while some of its conversations answer."""

    def __init__(self, talkers: Talkers, count: int) -> None:
        self.talkers, self.count = talkers, count

    def step_ms(self, steps: int) -> float:
        return self.talkers.step_ms(self.count, steps)


class Loop:
    """A plain loop: one call of the model per step, with one cache, whose rows differ in length."""

    def __init__(self, model: torch.nn.Module, context: int, rows: int) -> None:
        self.model, self.cache = model, ragged_cache(fill(model, context), model, rows)
        self.tokens = random_tokens(model, 1, rows)

    def step_ms(self, steps: int) -> float:
        return statistics.median(1000 * timing.seconds(self._step, self.model.device) for _ in range(steps))

    def _step(self) -> None:
        logits = self.model(self.tokens, use_cache=True, **{CACHE: self.cache}).logits
        self.tokens = logits[:, -1:].argmax(dim=-1)


class Linear:
    """The linear layers alone, for so many rows."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        self.model, self.layers = model, LinearLayers(model, 0, rows)
        self.token = random_tokens(model, 1)

    def step_ms(self, steps: int) -> float:
        call, device = (lambda: self.layers.step(self.token)), self.model.device
        return statistics.median(1000 * timing.seconds(call, device) for _ in range(steps))


class CacheRead:
    """One reading of every number of a cache, as sums: the least that attention must do."""

    def __init__(self, cache: attention_sinks.AttentionSinkKVCache) -> None:
        self.buffers = [buffer for layer in cache.layers for buffer in (layer.keys, layer.values)]

    def step_ms(self, steps: int) -> float:
        device = self.buffers[0].device
        return statistics.median(1000 * timing.seconds(self._read, device) for _ in range(steps))

    def _read(self) -> None:
        for buffer in self.buffers:
            buffer.sum()


# ---- what is measured


def measure_steps(model: torch.nn.Module, args: argparse.Namespace) -> list[dict]:
    """Steps of every contender with every number of conversations."""
    counts, context = args.conversations, 2 * args.window_size
    contenders: dict[tuple[str, int], object] = {}
    with ExitStack() as pools:
        pool = pools.enter_context(pool_of(model, max(counts), context, args.attention_sink_size))
        talkers = Talkers(pool, max(counts))
        for count in counts:
            contenders[POOL, count] = PoolSteps(talkers, count)
            if args.compiled:
                one = pools.enter_context(pool_of(model, count, context, args.attention_sink_size, compile=True))
                contenders[COMPILED, count] = PoolSteps(Talkers(one, count), count)
            contenders[LOOP, count] = loop = Loop(model, context, count)
            contenders[LINEAR, count], contenders[READ, count] = Linear(model, count), CacheRead(loop.cache)
        times = timing.alternate(contenders, args.rounds, lambda name: contenders[name].step_ms(args.steps))
    return [step_row(name, count, times, counts[0]) for name, count in times]


def step_row(name: str, count: int, times: dict[tuple[str, int], list[float]], first: int) -> dict:
    """One CSV row. `vs_one` compares tokens per second with those of the `first` number of conversations."""
    values = times[name, count]
    row = summary("steps", name, count, "ms/step", values)
    if name not in (LINEAR, READ):
        row["tokens_per_second"] = 1000 * count / row["median"]
        row["vs_loop"] = timing.median_ratio(values, times[LOOP, count])
    row["vs_one"] = count / first * timing.median_ratio(times[name, first], values)
    return row


def measure_reading(model: torch.nn.Module, args: argparse.Namespace) -> list[dict]:
    """Tokens of those who answer while another conversation reads, for every size of a chunk."""
    rows, context = args.conversations_beside + 1, 2 * args.window_size
    with ExitStack() as pools:
        readers = {}
        for size in args.chunk_sizes:
            pool = pools.enter_context(
                pool_of(model, rows, context, args.attention_sink_size, chunk_size=size, shared_beginnings=1)
            )
            readers[size] = Reader(pool, Talkers(pool, rows), args.reading)
        found = timing.alternate(readers, args.rounds, lambda size: readers[size].measure(2 * args.steps))
    table = []
    for size, rounds in found.items():
        alone, beside = [one.alone_ms for one in rounds], [one.beside_ms for one in rounds]
        table.append(summary("reading", f"chunk {size}, no reader", rows - 1, "ms/token 95 %", alone))
        table.append(summary("reading", f"chunk {size}, reader", rows - 1, "ms/token 95 %", beside))
        table[-1]["vs_no_reader"] = timing.median_ratio(beside, alone)
        table[-1]["read_per_second"] = statistics.median(one.read_per_second for one in rounds)
    return table


def measure_waking(model: torch.nn.Module, args: argparse.Namespace) -> list[dict]:
    """The opening of a session that lies in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        times, nbytes = waking_ms(model, folder, args.rounds + 1, 2 * args.window_size, args.attention_sink_size)
    return [summary("waking", POOL, 1, "ms", times[1:]) | {"session_bytes": nbytes}]


def summary(measure: str, contender: str, count: int, unit: str, values: list[float]) -> dict:
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}
    return {"measure": measure, "contender": contender, "conversations": count, "unit": unit, **spread}


def environment(model: torch.nn.Module, args: argparse.Namespace) -> dict:
    """What a reader must know to compare two files."""
    return {
        "model": args.shape,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention_sink_size": args.attention_sink_size,
        "window_size": args.window_size,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }


def print_rows(rows: list[dict]) -> None:
    for row in rows:
        numbers = [f"{row[name]:.2f}" for name in ("median", "low", "high")]
        others = ("tokens_per_second", "vs_one", "vs_loop" if "vs_loop" in row else "vs_no_reader", "read_per_second")
        more = [f"{row[name]:.2f}" if name in row else "" for name in others]
        size = f"{row['session_bytes'] / 1e6:.1f} MB" if "session_bytes" in row else ""
        print(LINE.format(row["measure"], row["contender"], row["conversations"], *numbers, row["unit"], *more), size)


@torch.no_grad()
def main() -> None:
    parser, args = parse_args()
    try:
        check_sizes(args)
    except ValueError as error:
        fail(parser, error)
    torch.set_num_threads(args.threads)
    sinks, window = args.attention_sink_size, args.window_size - args.attention_sink_size
    plain = build_shape(args.shape, "cpu", torch.float32, eos_token_id=None)
    model = attention_sinks.inject_attention_sinks(plain, sinks, window)
    print(f"{args.shape}, float32, CPU, {args.threads} threads, caches {sinks}+{window} full, {args.rounds} rounds")
    print(LINE.format("", "", "rows", "median", "low", "high", "", "tokens/s", "x one", "x other", "read/s"))
    rows: list[dict] = []
    for name, measure in zip(MEASURES, (measure_steps, measure_reading, measure_waking), strict=True):
        if name in args.measures:
            with quiet_libraries():  # caches forget a long system prompt on purpose
                rows += (new := measure(model, args))
            print_rows(new)
    path = args.output or Path(f"benchmark/outputs/speed/pool_{args.shape}.csv")
    facts = environment(model, args)
    write_csv(path, COLUMNS, [row | facts for row in rows])
    print(path)


if __name__ == "__main__":
    main()
