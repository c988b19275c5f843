"""What the benchmark scripts share: parsers and how they fail, where to run, the size of a cache."""

import argparse
from typing import NoReturn

import torch
from transformers import Cache


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
    )


def fail(parser: argparse.ArgumentParser, message: object) -> NoReturn:
    """Leave with exit code 2 and one line on stderr."""
    parser.exit(2, f"{parser.prog}: error: {' '.join(str(message).split())}\n")


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


def cache_bytes(cache: Cache | None) -> int:
    """Bytes of a cache: what it says itself, or the sum of its layers' tensors for a cache of Transformers."""
    if cache is None:
        return 0
    if hasattr(cache, "nbytes"):
        return cache.nbytes
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
