"""What benchmark/speed.py measures: contenders that make the same step, a clock, and a memory peak."""

import copy
import ctypes
import gc
import statistics
import threading
from collections.abc import Callable
from time import perf_counter

import psutil
import torch
from torch import nn

FILL_CALL = 512  # tokens per call while a context is built, to bound the memory that takes


class Streaming:
    """This library: one cache, filled once; steps after that leave its size alone."""

    def __init__(self, model: nn.Module, context: int):
        self.model = model
        # Twice the context: the cache is full, the ring has wrapped.
        self.cache = fill(model, 2 * context)

    def begin_round(self) -> None:
        pass

    def step(self, token: torch.Tensor) -> None:
        self.model(token, past_key_values=self.cache, use_cache=True)


class Dense:
    """Plain Transformers: every round starts from a copy of one context, so that it stays at the same length."""

    def __init__(self, model: nn.Module, context: int, steps: int):
        self.model = model
        # Half the steps lie below the context and half above: their mean is the context.
        self.context = fill(model, max(1, context - steps // 2))
        self.begin_round()

    def begin_round(self) -> None:
        self.cache = copy.deepcopy(self.context)

    def step(self, token: torch.Tensor) -> None:
        self.model(token, past_key_values=self.cache, use_cache=True)


class LinearLayers:
    """The model's linear layers and nothing else: every weight read once per token, the floor for a single step."""

    def __init__(self, model: nn.Module):
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        options = {"device": model.device, "dtype": model.dtype}
        self.layers = [(layer, torch.randn(1, 1, layer.in_features, **options)) for layer in layers]

    def begin_round(self) -> None:
        pass

    def step(self, token: torch.Tensor) -> None:
        for layer, inputs in self.layers:
            layer(inputs)


def share_weights(model: nn.Module) -> nn.Module:
    """A second model object over the same parameters, so that one of the two can be injected."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def random_tokens(model: nn.Module, length: int) -> torch.Tensor:
    return torch.randint(model.config.get_text_config().vocab_size, (1, length), device=model.device)


def fill(model: nn.Module, length: int):
    """Read `length` random tokens and return the cache."""
    return fill_with(model, random_tokens(model, length))


def fill_with(model: nn.Module, ids: torch.Tensor):
    """Read `ids` [batch, tokens] and return the cache."""
    cache = None
    for chunk in ids.split(FILL_CALL, dim=1):
        cache = model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    return cache


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


def time_steps(contenders: dict, model: nn.Module, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms/token of every contender in every round; round 0 warms up and is dropped."""
    times = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in rotated(contenders, number):
            contender = contenders[name]
            contender.begin_round()
            tokens = random_tokens(model, steps).split(1, dim=1)
            steps_ms = [seconds(lambda c=contender, t=t: c.step(t), model.device) * 1000 for t in tokens]
            times[name].append(statistics.median(steps_ms))
    return {name: values[1:] for name, values in times.items()}


def time_calls(models: dict[str, nn.Module], length: int, rounds: int) -> dict[str, list[float]]:
    """Tokens/s of one call over `length` tokens with a new cache, per model and round; round 0 is dropped."""
    speeds = {name: [] for name in models}
    for number in range(rounds + 1):
        for name in rotated(models, number):
            model = models[name]
            call = long_call(model, length)
            speeds[name].append(length / seconds(call, model.device))
    return {name: values[1:] for name, values in speeds.items()}


def long_call(model: nn.Module, length: int) -> Callable:
    """One call over `length` tokens that only computes the last logits, as the prefill of `generate` does."""
    tokens = random_tokens(model, length)
    return lambda: model(tokens, use_cache=True, logits_to_keep=1) and None


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
