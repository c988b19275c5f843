"""The clock and the memory meter of the speed benchmarks: contenders alternate, so that what slows one slows all."""

import argparse
import ctypes
import gc
import statistics
import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TypeVar

import psutil
import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from attention_sinks.versions import CACHE
from benchmark.lib.common import positive_int
from benchmark.speed.contenders import random_tokens

Name = TypeVar("Name")
Value = TypeVar("Value")


def add_timing_arguments(parser: argparse.ArgumentParser, rounds: int, steps: int) -> None:
    """Add the options of every script that times steps; `rounds` and `steps` are the defaults."""
    add = parser.add_argument
    add("--rounds", type=positive_int, default=rounds, help="rounds of steps (default: %(default)s)")
    add("--steps", type=positive_int, default=steps, help="single steps, or tokens, per round (default: %(default)s)")
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch (default: %(default)s)")


def seconds(action: Callable, device: torch.device) -> float:
    """Seconds that `action` takes, the GPU's work included."""
    synchronize(device)
    start = perf_counter()
    action()
    synchronize(device)
    return perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(names: Iterable[Name], rounds: int, measure: Callable[[Name], Value]) -> dict[Name, list[Value]]:
    """What `measure(name)` returns for every name in every round; round 0 warms up and is dropped.

    Another name is first in each round, so that no contender always runs on what another one left in the caches.
    """
    names = list(names)
    values = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(measure(name))
    return {name: measured[1:] for name, measured in values.items()}


def median_ratio(values: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio within a round, so that what slows a whole round cancels."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def time_steps(contenders: dict, model: nn.Module, rows: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms per step of every contender in every round."""

    def median_ms(name: str) -> float:
        tokens = random_tokens(model, steps, rows).split(1, dim=1)
        return statistics.median([_step_ms(contenders[name], token) for token in tokens])

    return alternate(contenders, rounds, median_ms)


def _step_ms(contender, token: torch.Tensor) -> float:
    contender.prepare()
    return seconds(lambda: contender.step(token), token.device) * 1000


def time_calls(models: dict[str, nn.Module], length: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Tokens/s of one call over `length` tokens with a new cache, per model and round."""

    def speed(name: str) -> float:
        return rows * length / seconds(long_call(models[name], length, rows), models[name].device)

    return alternate(models, rounds, speed)


class Clock(BaseStreamer):
    """Notes when `generate` hands out a token."""

    def __init__(self):
        self.times = []

    def put(self, value) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass

    @property
    def step_ms(self) -> float:
        """Median milliseconds between two tokens, the first step of the call left out."""
        steps = [later - earlier for earlier, later in zip(self.times[2:], self.times[3:], strict=False)]
        return statistics.median(steps) * 1000


def generate(model: nn.Module, ids: torch.Tensor, cache, steps: int, clock: Clock | None = None) -> None:
    """Generate `steps` tokens on from `ids`, all but the last of which `cache` has seen."""
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **{CACHE: cache},
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        streamer=clock,
    )


def long_call(model: nn.Module, length: int, rows: int = 1) -> Callable:
    """One call over `length` tokens that only computes the last logits, as the prefill of `generate` does."""
    tokens = random_tokens(model, length, rows)

    def call() -> None:
        model(tokens, use_cache=True, logits_to_keep=1)

    return call


def copy_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second that the device's memory is read and written with by a copy of 256 MiB, the best of 10."""
    source = torch.ones(2**28 // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(10))


def peak_bytes(action: Callable, device: torch.device) -> int:
    """The most memory `action` holds above what was held before, in bytes; on a CPU it is sampled every 2 ms."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_rss(action)


def _peak_rss(action: Callable) -> int:
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # glibc: hand freed memory back, or its reuse would not be seen
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def sample():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        action()
    finally:
        done.set()
        sampler.join()
    return max(peak, process.memory_info().rss) - before
