"""The clock and the memory meter of the speed benchmarks: contenders take turns, so that what slows one slows all."""

import ctypes
import gc
import statistics
import threading
from collections.abc import Callable
from time import perf_counter

import psutil
import torch
from torch import nn

from benchmark.speed.contenders import random_tokens


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


def time_steps(contenders: dict, model: nn.Module, rows: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms per step of every contender in every round; round 0 warms up and is dropped."""
    times = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in rotated(contenders, number):
            tokens = random_tokens(model, steps, rows).split(1, dim=1)
            times[name].append(statistics.median([_step_ms(contenders[name], token) for token in tokens]))
    return {name: values[1:] for name, values in times.items()}


def _step_ms(contender, token: torch.Tensor) -> float:
    contender.prepare()
    return seconds(lambda: contender.step(token), token.device) * 1000


def time_calls(models: dict[str, nn.Module], length: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Tokens/s of one call over `length` tokens with a new cache, per model and round; round 0 is dropped."""
    speeds = {name: [] for name in models}
    for number in range(rounds + 1):
        for name in rotated(models, number):
            model = models[name]
            speeds[name].append(rows * length / seconds(long_call(model, length, rows), model.device))
    return {name: values[1:] for name, values in speeds.items()}


def long_call(model: nn.Module, length: int, rows: int = 1) -> Callable:
    """One call over `length` tokens that only computes the last logits, as the prefill of `generate` does."""
    tokens = random_tokens(model, length, rows)
    return lambda: model(tokens, use_cache=True, logits_to_keep=1) and None


def copy_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second that the device's memory is read and written with by a copy of 256 MiB, the best of 10."""
    source = torch.ones(2**28 // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(10))


def rotated(names, number: int) -> list:
    """The contenders in turn, another one first each round."""
    names = list(names)
    start = number % len(names)
    return names[start:] + names[:start]


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
