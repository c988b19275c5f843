"""What the benchmark scripts share: argument types, where to run, and the size of a cache."""

import argparse

import torch
from transformers import Cache


def positive_int(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def device_and_dtype(device: str | None, dtype: str | None) -> tuple[str, torch.dtype]:
    """Fill in what was not asked for: all GPUs in float16 where there are any, else the CPU in float32."""
    device_map = device or ("auto" if torch.cuda.is_available() else "cpu")
    return device_map, getattr(torch, dtype or ("float32" if device_map == "cpu" else "float16"))


def cache_bytes(cache: Cache) -> int:
    """Bytes of a cache: what it says itself, or the sum of its layers' tensors for a cache of Transformers."""
    if hasattr(cache, "nbytes"):
        return cache.nbytes
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
