"""The server under load: many clients at once, one conversation of many turns, and what the server costs per token.

clients   so many clients talk at once for some time, each in a conversation whose history it sends whole. Every answer
          is compared with that of a chat alone. Memory is told before and after the second half.
turns     one conversation that passes its window many times: tokens fed, and time to the first token, by turn.
overhead  milliseconds per token of a stream of the server, beside the pool's own, alternating in one process.

The model is tiny and random, but for `overhead`, which has random weights of the shape of SmolLM2-135M. The server runs
in a thread of this process, and the clients in another process would wait for the same cores.

Examples:
    python -m benchmark.speed.server_load
    python -m benchmark.speed.server_load --measures clients --clients 64 --seconds 120
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn
from transformers import GenerationConfig

from attention_sinks import StreamingChat, StreamPool, inject_attention_sinks
from attention_sinks.server.app import create_app
from attention_sinks.server.histories import Histories
from attention_sinks.server.running import server_of
from attention_sinks.server.settings import ServerSettings
from benchmark.lib.common import build_parser, positive_int
from benchmark.lib.results import write_csv
from benchmark.speed import timing
from benchmark.speed.pools import word_tokenizer, words
from benchmark.speed.shapes import SHAPES, build_shape

MEASURES = ("clients", "turns", "overhead")
COLUMNS = ("measure", "what", "value", "unit", "torch_version", "transformers_version")
NAME = "benchmark"
Row = dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add("--measures", choices=MEASURES, nargs="+", default=list(MEASURES), help="(default: all)")
    add("--clients", type=positive_int, default=64, help="clients at once (default: %(default)s)")
    add("--seconds", type=positive_int, default=120, help="for which they talk (default: %(default)s)")
    add("--turns", type=positive_int, default=300, help="of the long conversation (default: %(default)s)")
    add("--rows", type=positive_int, default=8, help="rows of the pool (default: %(default)s)")
    add("--shape", choices=tuple(SHAPES), default="smollm2-135m", help="for overhead (default: %(default)s)")
    timing.add_timing_arguments(parser, rounds=7, steps=32)
    add("--output", type=Path, default=Path("benchmark/outputs/speed/server_load.csv"), help="(default: %(default)s)")
    return parser.parse_args()


# ---- the server and its clients


@contextmanager
def served(model: nn.Module, rows: int) -> Iterator[tuple[StreamPool, int]]:
    """A running server: its pool and its port."""
    tokenizer, histories = word_tokenizer(model), Histories(None)
    settings = ServerSettings(sessions_per_key=128, max_connections=1000, max_tokens=100_000, page=False)
    with StreamPool(model, tokenizer, rows) as pool:
        app = create_app(pool, histories, NAME, settings)
        server = server_of(app, host="127.0.0.1", port=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield pool, server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def pieces_of(port: int, messages: list[Row], tokens: int) -> Iterator[str]:
    """The pieces of an answer, as they come.

    No client of OpenAI's, which takes about a millisecond for every message of a history before it sends it.
    """
    asked = {"model": NAME, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    for line in reply:
        if line.startswith(b"data: {"):
            told = json.loads(line.removeprefix(b"data: "))
            if "error" in told:
                raise RuntimeError(told["error"]["message"])
            if piece := told["choices"][0]["delta"].get("content"):
                yield piece
    connection.close()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}")


def told(port: int, messages: list[Row], tokens: int) -> tuple[str, float]:
    """An answer, and the seconds to its first piece."""
    start, first, text = time.perf_counter(), 0.0, ""
    for piece in pieces_of(port, messages, tokens):
        first = first or time.perf_counter() - start
        text += piece
    return text, first


def tiny(window: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return inject_attention_sinks(transformers.LlamaForCausalLM(config).eval(), 4, window)


# ---- what is measured


def measure_clients(args: argparse.Namespace) -> list[Row]:
    """Many clients at once."""
    model, process, tokens = tiny(60), psutil.Process(), 8
    kinds = [[words(3 + n % 5, n + 7 * turn) for turn in range(12)] for n in range(16)]
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False)
    right = []
    for kind in kinds:
        chat = StreamingChat(model, word_tokenizer(model), generation_config=config)
        right.append([str(chat.ask(text)) for text in kind])
    counts = {"turns": 0, "errors": 0, "wrong": 0}
    with served(model, args.rows) as (_, port):
        end = time.monotonic() + args.seconds

        def talk(number: int) -> None:
            kind = number % len(kinds)
            while time.monotonic() < end:
                messages: list[Row] = []
                for text, answer in zip(kinds[kind], right[kind], strict=True):
                    messages.append({"role": "user", "content": text})
                    try:
                        said, _ = told(port, messages, tokens)
                    except Exception as error:
                        counts["errors"] += 1
                        logging.error("%r", error)
                        break
                    counts["turns"] += 1
                    counts["wrong"] += said != answer
                    messages.append({"role": "assistant", "content": said})

        with ThreadPoolExecutor(args.clients) as threads:
            tasks = [threads.submit(talk, number) for number in range(args.clients)]
            time.sleep(args.seconds / 2)
            half = process.memory_info().rss
            time.sleep(max(0.0, end - time.monotonic()))
            grown = (process.memory_info().rss - half) / 2**20
            for task in tasks:
                task.result()
    rows = [row("clients", what, count, "") for what, count in counts.items()]
    return [*rows, row("clients", "growth in the second half", grown, "MiB")]


def measure_turns(args: argparse.Namespace) -> list[Row]:
    """One conversation of many turns."""
    with served(tiny(256), args.rows) as (pool, port):
        messages, fed, first = list[Row](), list[int](), list[float]()
        for turn in range(args.turns):
            messages.append({"role": "user", "content": words(10, turn)})
            before = pool.numbers.tokens_read
            said, seconds = told(port, messages, 8)
            fed.append(pool.numbers.tokens_read - before)
            first.append(1000 * seconds)
            messages.append({"role": "assistant", "content": said})
    early, late = statistics.median(first[5:15]), statistics.median(first[-10:])
    return [
        row("turns", "tokens fed per turn after the first, least", min(fed[1:]), ""),
        row("turns", "tokens fed per turn after the first, most", max(fed[1:]), ""),
        row("turns", "time to first token, turns 6 to 15", early, "ms"),
        row("turns", "time to first token, last 10 turns", late, "ms"),
        row("turns", "ratio", late / early, "x"),
    ]


def measure_overhead(args: argparse.Namespace) -> list[Row]:
    """Milliseconds per token, by a client of the server and by a reader of the pool."""
    plain = build_shape(args.shape, "cpu", torch.float32, eos_token_id=None)
    model = inject_attention_sinks(plain, 4, 508)
    with served(model, args.rows) as (pool, port):

        def by_server() -> float:
            return per_token(pieces_of(port, [{"role": "user", "content": "w7"}], args.steps))

        def by_pool() -> float:
            config = GenerationConfig(max_new_tokens=args.steps, do_sample=False)
            return per_token(pool.conversation().send("w7", generation_config=config))

        found = timing.alternate(
            ("server", "pool"), args.rounds, lambda name: by_server() if name == "server" else by_pool()
        )
    ratio = timing.median_ratio(found["server"], found["pool"])
    rows = [row("overhead", name, statistics.median(values), "ms/token") for name, values in found.items()]
    return [*rows, row("overhead", "ratio", ratio, "x")]


def per_token(pieces: Any) -> float:
    """Milliseconds from one piece to the next, on average."""
    times = [time.perf_counter() for _ in pieces]
    return 1000 * (times[-1] - times[0]) / (len(times) - 1)


def row(measure: str, what: str, value: float, unit: str) -> Row:
    print(f"{measure:9} {what:45} {value:10.2f} {unit}", flush=True)
    return {"measure": measure, "what": what, "value": value, "unit": unit}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    found = {"clients": measure_clients, "turns": measure_turns, "overhead": measure_overhead}
    rows = [each for name in MEASURES if name in args.measures for each in found[name](args)]
    facts = {"torch_version": torch.__version__, "transformers_version": transformers.__version__}
    write_csv(args.output, COLUMNS, [each | facts for each in rows])
    print(args.output)


if __name__ == "__main__":
    main()
