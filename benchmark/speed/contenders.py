"""What the speed benchmarks compare: contenders that make the same step, each over a context of the same length."""

import copy

import torch
from torch import nn
from transformers import StaticCache

from attention_sinks import AttentionSinkKVCache
from attention_sinks.versions import CACHE

FILL_CALL = 512  # tokens per call while a context is built, to bound the memory that takes


class Streaming:
    """This library: one cache, filled once; steps after that leave its size alone."""

    def __init__(self, model: nn.Module, context: int, rows: int, cache_dtype: str = "auto"):
        self.forward = model
        cache = AttentionSinkKVCache(model, attention_sink_cache_dtype=cache_dtype)
        # Twice the context: the cache is full, the ring has wrapped.
        self.cache = fill(model, 2 * context, rows, cache)

    def prepare(self) -> None:
        pass

    def step(self, token: torch.Tensor) -> None:
        self.forward(token, **{CACHE: self.cache}, use_cache=True)


class StreamingCompiled(Streaming):
    """This library, its step compiled into one graph."""

    def __init__(self, model: nn.Module, context: int, rows: int, cache_dtype: str = "auto"):
        super().__init__(model, context, rows, cache_dtype)
        self.forward = compiled(model)


class Dense:
    """Plain Transformers, whose cache is taken back after every step, so that it stays at the same length."""

    def __init__(self, model: nn.Module, context: int, rows: int):
        self.model, self.context = model, context
        self.cache = fill(model, context, rows)

    def prepare(self) -> None:
        if (beyond := self.cache.get_seq_length() - self.context) > 0:
            self.cache.crop(-beyond)

    def step(self, token: torch.Tensor) -> None:
        self.model(token, **{CACHE: self.cache}, use_cache=True)


class StaticCompiled:
    """Plain Transformers with a StaticCache, compiled; like `generate` it is handed the mask."""

    def __init__(self, model: nn.Module, context: int, rows: int):
        self.context, self.forward = context, compiled(model)
        self.cache = StaticCache(config=model.config, max_cache_len=context + 1)
        fill(model, context, rows, self.cache)
        self.mask = torch.ones(rows, 1, 1, context + 1, dtype=torch.bool, device=model.device)
        self.position = torch.full((rows, 1), context, device=model.device)

    def prepare(self) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.context)

    def step(self, token: torch.Tensor) -> None:
        self.forward(token, attention_mask=self.mask, position_ids=self.position, **{CACHE: self.cache})


class LinearLayers:
    """The model's linear layers and nothing else: every weight read once per token, the floor for a single step."""

    cache = None

    def __init__(self, model: nn.Module, context: int, rows: int):
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        options = {"device": model.device, "dtype": model.dtype}
        self.layers = [(layer, torch.randn(rows, 1, layer.in_features, **options)) for layer in layers]

    def prepare(self) -> None:
        pass

    def step(self, token: torch.Tensor) -> None:
        for layer, inputs in self.layers:
            layer(inputs)


def compiled(model: nn.Module):
    """The forward of `model` as one graph for caches of one shape; on a GPU replayed as a CUDA graph.

    A process that has compiled a model for two shapes makes the second graph for any shape, which is slower.
    """
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    return torch.compile(model.forward, fullgraph=True, dynamic=False, mode=mode)


def share_weights(model: nn.Module) -> nn.Module:
    """A second model object over the same parameters, so that one of the two can be injected."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def by_columns(model: nn.Module) -> nn.Module:
    """A copy of `model` with weights of its own, those of linear layers column by column in memory."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return copied


def random_tokens(model: nn.Module, length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(model.config.get_text_config().vocab_size, (rows, length), device=model.device)


def fill(model: nn.Module, length: int, rows: int = 1, cache=None):
    """Read `length` random tokens and return the cache."""
    return fill_with(model, random_tokens(model, length, rows), cache)


def fill_with(model: nn.Module, ids: torch.Tensor, cache=None):
    """Read `ids` [batch, tokens] and return the cache."""
    for chunk in ids.split(FILL_CALL, dim=1):
        cache = model(chunk, **{CACHE: cache}, use_cache=True, logits_to_keep=1)[CACHE]
    return cache
