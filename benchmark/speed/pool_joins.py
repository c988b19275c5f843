"""Ten thousand conversations join and leave a pool: memory must not grow, and every answer must be the one alone.

A tiny random model answers in a pool of few rows, for which more conversations wait than there are rows. Their messages
have many lengths, up to more than a cache holds, so they join and leave at any time. Each answer is compared with that
of a `StreamingChat` of its own. The script prints the memory of the process (RSS) at every tenth of the joins.

The exit code is 1 when an answer differs, or when RSS at the end is more than --growth MiB above that after a fifth.

Example:
    python benchmark/speed/pool_joins.py --joins 10000 --rows 8
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import deque
from pathlib import Path
from time import perf_counter

import psutil
import torch
from transformers import GenerationConfig

import attention_sinks
from attention_sinks import StreamingChat, StreamPool
from benchmark.lib.common import build_parser, positive_int
from benchmark.lib.results import write_csv
from benchmark.speed.pools import word_tokenizer, words
from benchmark.speed.shapes import build_shape

SINKS, WINDOW = 4, 28
KINDS = 48  # so many different messages
COLUMNS = ("joins", "rss_bytes", "seconds", "answers_that_differ")


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--joins", type=positive_int, default=10_000, help="conversations in all (default: %(default)s)")
    add("--rows", type=positive_int, default=8, help="rows of the pool (default: %(default)s)")
    add("--growth", type=float, default=8.0, metavar="MIB", help="the most that memory may grow (default: %(default)s)")
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch (default: %(default)s)")
    add("--output", type=Path, default=None, help="write the figures to this CSV file as well; it is replaced")
    return parser, parser.parse_args()


def message(kind: int) -> str:
    """One of the messages, of 1 to `KINDS` words."""
    return words(1 + kind, seed=kind)


def config(kind: int) -> GenerationConfig:
    """How long the answer to it is: 1 to 8 tokens."""
    return GenerationConfig(max_new_tokens=1 + kind % 8, do_sample=False)


def answers_alone(model: torch.nn.Module) -> list[str]:
    """The answers in chats of their own."""
    tokenizer = word_tokenizer(model)
    chats = [StreamingChat(model, tokenizer, generation_config=config(kind)) for kind in range(KINDS)]
    return [str(chat.ask(message(kind))) for kind, chat in enumerate(chats)]


class Joins:
    """Conversations that join and leave `pool`, some of them waiting, whose answers shall be `expected`."""

    def __init__(self, pool: StreamPool, expected: list[str]) -> None:
        self.pool, self.expected, self.differing, self.count = pool, expected, 0, 0

    def run(self, joins: int) -> None:
        """Let `joins` more of them come and go."""
        running = deque()
        for _ in range(joins):
            kind = self.count % KINDS
            running.append((kind, self.pool.conversation().send(message(kind), generation_config=config(kind))))
            self.count += 1
            if len(running) > 2 * self.pool.numbers.rows:
                self._hear(*running.popleft())
        for each in running:
            self._hear(*each)

    def _hear(self, kind: int, answer: attention_sinks.AnswerStream) -> None:
        said = "".join(answer)
        self.differing += said != self.expected[kind]


def run(joins: Joins, total: int) -> list[dict]:
    """Memory at every tenth of the joins."""
    process, start, rows = psutil.Process(), perf_counter(), []
    for part in range(1, 11):
        joins.run(total * part // 10 - joins.count)
        gc.collect()
        rss, seconds = process.memory_info().rss, perf_counter() - start
        row = {"joins": joins.count, "rss_bytes": rss, "seconds": seconds, "answers_that_differ": joins.differing}
        print(f"{joins.count:7} joins: {rss / 2**20:8.1f} MiB, {seconds:6.1f} s, {joins.differing} answers differ")
        rows.append(row)
    return rows


def main() -> None:
    parser, args = parse_args()
    if args.joins < 10:
        parser.error(f"--joins {args.joins} has no tenth to look at memory after; pass 10 or more.")
    torch.set_num_threads(args.threads)
    plain = build_shape("tiny", "cpu", torch.float32, eos_token_id=None)
    model = attention_sinks.inject_attention_sinks(plain, SINKS, WINDOW)
    print(f"tiny Llama, float32, caches {SINKS}+{WINDOW}, {args.rows} rows, {args.threads} threads")
    with StreamPool(model, word_tokenizer(model), args.rows, attention_sink_size=SINKS) as pool:
        rows = run(Joins(pool, answers_alone(model)), args.joins)
    growth = (rows[-1]["rss_bytes"] - rows[1]["rss_bytes"]) / 2**20
    print(f"memory has grown by {growth:.1f} MiB since {rows[1]['joins']} joins")
    if args.output:
        write_csv(args.output, COLUMNS, rows)
        print(args.output)
    if rows[-1]["answers_that_differ"] or growth > args.growth:
        sys.exit(1)


if __name__ == "__main__":
    main()
