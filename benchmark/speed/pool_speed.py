"""A `StreamPool` beside a plain loop over one batch: tokens/s by rows, what others wait while one reads, and waking.

All conversations have passed their window. Ways alternate within rounds; figures are medians over rounds, with their
range. The floor is measured alone: the linear layers of a step, and one reading of the caches.

Examples:
    python -m benchmark.speed.pool_speed --output pool.csv
    python -m benchmark.speed.pool_speed --compiled --rows 1 8
    python -m benchmark.speed.pool_speed --joins 10000   # a tiny model; memory, and every answer beside that alone
"""

import argparse
import copy
import csv
import gc
import random
import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import psutil
import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, StoppingCriteria

from attention_sinks import (
    AttentionSinkKVCache,
    AutoModelForCausalLM,
    StreamingChat,
    StreamPool,
    inject_attention_sinks,
)
from attention_sinks.versions import CACHE
from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.experiments import add_cache_arguments, check_sizes
from benchmark.speed.contenders import random_tokens
from benchmark.speed.shapes import build_shape
from benchmark.speed.timing import add_timing_arguments, alternate

TEXT = "The river runs through the valley, and the people of the town go down to it every morning. "


class Ticks(StoppingCriteria):
    """Notes when each token of an answer is chosen."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **options):
        self.times.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", default="models/SmolLM2-135M-Instruct", help="(default: %(default)s)")
    add("--rows", type=positive_int, nargs="+", default=[1, 8, 32], help="conversations at once (default: 1 8 32)")
    add_timing_arguments(parser, rounds=5, steps=24)
    add("--compiled", action="store_true", help="steps in one graph of torch.compile, one for each number of rows")
    add("--chunk_sizes", type=positive_int, nargs="*", default=[16, 32, 64], help="read beside (default: 16 32 64)")
    add("--reading", type=positive_int, default=8192, help="tokens of the long message (default: %(default)s)")
    add("--joins", type=positive_int, help="only let so many conversations join and leave a pool, and compare answers")
    add("--output", type=Path, help="a CSV file for all figures")
    add_cache_arguments(parser, window_size=512)
    return parser, parser.parse_args()


# ---- steps


def settings(length: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=length, min_new_tokens=length, do_sample=False)


def filled(pool: StreamPool, count: int, tokens: int, tokenizer) -> list:
    """`count` conversations that have read about `tokens` tokens."""
    text = TEXT * (tokens // len(tokenizer(TEXT).input_ids) + 1)
    conversations = [pool.conversation() for _ in range(count)]
    for answer in [each.send(text, generation_config=settings(1)) for each in conversations]:
        list(answer)
    return conversations


def pool_ms(conversations: list, steps: int) -> float:
    """Median milliseconds between two tokens while all conversations are being answered."""
    ticks = [Ticks() for _ in conversations]
    length = steps + 2 * len(conversations)  # the first ones have to wait until the last one has joined
    answers = [
        each.send("Go on.", generation_config=settings(length), stopping_criteria=[tick])
        for each, tick in zip(conversations, ticks, strict=True)
    ]
    for answer in answers:
        list(answer)
    start, end = max(tick.times[0] for tick in ticks), min(tick.times[-1] for tick in ticks)
    return statistics.median(gaps(ticks, start, end)) * 1000


def gaps(ticks: list[Ticks], start: float, end: float) -> list[float]:
    """Seconds between the tokens of each answer from `start` to `end`."""
    inside = [[time for time in tick.times if start <= time <= end] for tick in ticks]
    return [later - earlier for times in inside for earlier, later in zip(times, times[1:], strict=False)]


def loop_ms(model, cache: AttentionSinkKVCache, steps: int, run) -> float:
    """Median milliseconds of a step of a plain greedy loop over one batch."""
    token, times = torch.full((cache.batch_size, 1), 11, dtype=torch.long, device=model.device), []
    for _ in range(steps):
        start = perf_counter()
        logits = run(input_ids=token, use_cache=True, logits_to_keep=1, **{CACHE: cache}).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        times.append(perf_counter() - start)
    return statistics.median(times) * 1000


def floor_ms(model, cache: AttentionSinkKVCache) -> tuple[float, float]:
    """Milliseconds of the linear layers of one step for all rows, and of reading the cache once."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = {
        size: torch.randn(cache.batch_size, size, dtype=model.dtype) for size in {each.in_features for each in layers}
    }
    buffers = cache.layer_stack.tensors

    def best(action) -> float:
        times = []
        for _ in range(7):
            start = perf_counter()
            action()
            times.append(perf_counter() - start)
        return min(times) * 1000

    return best(lambda: [each(inputs[each.in_features]) for each in layers]), best(
        lambda: [each.sum() for each in buffers]
    )


def measure_steps(args, model, tokenizer) -> list[dict]:
    """Figures of pools and of plain loops, by number of rows."""
    length = args.window_size + 32
    ids = random_tokens(model, length)
    single = AttentionSinkKVCache(model)
    model(ids, use_cache=True, logits_to_keep=1, **{CACHE: single})
    run = torch.compile(model.forward, fullgraph=True) if args.compiled else model
    pools, ways, caches = [], {}, {}
    for rows in args.rows:
        caches[rows] = copy.deepcopy(single)
        caches[rows].batch_repeat_interleave(rows)
        pools.append(StreamPool(model, tokenizer, rows, compile=args.compiled))
        talks = filled(pools[-1], rows, length, tokenizer)
        ways["pool", rows] = lambda talks=talks: pool_ms(talks, args.steps)
        ways["loop", rows] = lambda cache=caches[rows]: loop_ms(model, cache, args.steps, run)
    times = alternate(ways, args.rounds, lambda way: ways[way]())
    for pool in pools:
        pool.close()
    floors = {rows: floor_ms(model, caches[rows]) for rows in args.rows}
    return [
        {
            "part": "steps",
            "way": way,
            "rows": rows,
            "median_ms": statistics.median(values),
            "least_ms": min(values),
            "most_ms": max(values),
            "tokens_per_second": 1000 * rows / statistics.median(values),
            "times_one_row": statistics.median(
                rows * one / value for one, value in zip(times[way, args.rows[0]], values, strict=True)
            )
            / args.rows[0],
            "times_loop": statistics.median(
                value / other for value, other in zip(values, times["loop", rows], strict=True)
            ),
            "linear_ms": floors[rows][0],
            "cache_ms": floors[rows][1],
        }
        for (way, rows), values in times.items()
    ]


# ---- reading beside steps


def measure_reading(args, model, tokenizer, rows: int = 8) -> list[dict]:
    """How long the others wait for a token while one of `rows` conversations reads a long message."""
    lines = []
    for size in args.chunk_sizes:
        with StreamPool(model, tokenizer, rows, chunk_size=size, compile=args.compiled) as pool:
            *talkers, reader = filled(pool, rows, args.window_size + 32, tokenizer)
            ticks = [Ticks() for _ in talkers]
            answers = [
                each.send("Go on.", generation_config=settings(100_000), stopping_criteria=[tick])
                for each, tick in zip(talkers, ticks, strict=True)
            ]
            while min(len(tick.times) for tick in ticks) < args.steps + 1:
                next(answers[0])
            alone = perf_counter()
            text = TEXT * (args.reading // len(tokenizer(TEXT).input_ids))
            taken = Ticks()
            list(reader.send(text, generation_config=settings(1), stopping_criteria=[taken]))
            end = taken.times[0]
            for answer in answers:
                answer.close()
            before = _percentiles(gaps(ticks, max(tick.times[0] for tick in ticks), alone))
            beside = _percentiles(gaps(ticks, alone, end))
        lines.append(
            {
                "part": "reading",
                "way": f"chunk_size {size}",
                "rows": rows,
                "median_ms": beside[0],
                "p95_ms": beside[1],
                "median_alone_ms": before[0],
                "p95_alone_ms": before[1],
                "times_alone": beside[1] / before[1],
                "times_alone_median": beside[1] / before[0],
                "read_per_second": args.reading / (end - alone),
            }
        )
    return lines


def _percentiles(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile of seconds, in milliseconds."""
    ordered = sorted(values)
    return statistics.median(ordered) * 1000, ordered[int(0.95 * (len(ordered) - 1))] * 1000


# ---- waking


def measure_waking(args, model, tokenizer) -> list[dict]:
    """How long it takes to wake a conversation from a local folder."""
    times = []
    with (
        tempfile.TemporaryDirectory() as folder,
        StreamPool(model, tokenizer, 1, sessions=folder, max_session_bytes=1) as pool,
    ):
        conversation = pool.conversation("sleeper")
        conversation.ask(TEXT * 40, generation_config=settings(2))
        (session,) = pool.sessions()
        for _ in range(21):
            start = perf_counter()
            _ = conversation.turns_in_window
            times.append((perf_counter() - start) * 1000)
    times = times[1:]
    return [
        {
            "part": "waking",
            "way": f"{session.nbytes} bytes",
            "rows": 1,
            "median_ms": statistics.median(times),
            "least_ms": min(times),
            "most_ms": max(times),
        }
    ]


# ---- joins and leaves


def measure_joins(args, model, tokenizer) -> list[dict]:
    """Let conversations come and go; memory after a fifth of them and at the end, and answers that differ."""
    tiny = build_shape("tiny", "cpu", torch.float32, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = inject_attention_sinks(tiny, args.attention_sink_size, 60)
    numbers = random.Random(0)
    messages = [" ".join(numbers.choice(TEXT.split()) for _ in range(numbers.randint(1, 12))) for _ in range(50)]
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    expected = {}
    for message in messages:
        expected[message] = str(StreamingChat(model, tokenizer, generation_config=config).ask(message))
    wrong, rss, process, running = 0, {}, psutil.Process(), []
    with StreamPool(model, tokenizer, 8, generation_config=config) as pool:
        for number in range(args.joins):
            message = numbers.choice(messages)
            running.append((message, pool.conversation().send(message)))
            if len(running) == 12:
                wrong += _differs(running.pop(numbers.randrange(12)), expected)
            if number + 1 in (args.joins // 5, args.joins):
                gc.collect()
                rss[number + 1] = process.memory_info().rss / 2**20
        wrong += sum(_differs(each, expected) for each in running)
    first, last = rss.values()
    return [
        {
            "part": "joins",
            "way": f"{args.joins} turns",
            "rows": 8,
            "rss_mib": last,
            "grown_mib": last - first,
            "wrong": wrong,
        }
    ]


def _differs(turn, expected: dict[str, str]) -> bool:
    message, stream = turn
    return "".join(stream) != expected[message]


def main() -> None:
    parser, args = parse_args()
    try:
        check_sizes(args)
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path,
            dtype=torch.float32,
            attention_sink_size=args.attention_sink_size,
            attention_sink_window_size=args.window_size - args.attention_sink_size,
        ).eval()
    except (ValueError, OSError) as error:
        fail(parser, error)
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        parts = [measure_joins] if args.joins else [measure_steps, measure_reading, measure_waking]
        lines = []
        for part in parts:
            for line in part(args, model, tokenizer):
                print(", ".join(f"{name} {_short(value)}" for name, value in line.items()), flush=True)
                lines.append(line)
    if args.output:
        _write(args.output, lines)


def _short(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _write(path: Path, lines: list[dict]) -> None:
    names = list(dict.fromkeys(name for line in lines for name in line))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
