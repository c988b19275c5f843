"""The experiments that are compared, the options that choose one, and the model each of them runs."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers

import attention_sinks
from attention_sinks.settings import CACHE_DTYPES
from benchmark.lib.common import device_and_dtype, positive_int

EXPERIMENTS = {
    "attention_sinks": "sinks and window",
    "transformers": "plain dense attention",
    "windowed": "the same window without sinks",
    "recompute": "the window's tokens are read again for every token, without a cache",
}


def add_model_arguments(parser: argparse.ArgumentParser, experiments: tuple = tuple(EXPERIMENTS)) -> None:
    """Add the options that say which experiment runs, on which model and where."""
    add = parser.add_argument
    meanings = "; ".join(f"{name}: {EXPERIMENTS[name]}" for name in experiments)
    add("--experiment", choices=experiments, default="attention_sinks", help=f"{meanings} (default: %(default)s)")
    add_loading_arguments(parser)
    add_cache_arguments(parser)
    add(
        "--cache_dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="what keys and values are rounded to, except in plain Transformers (default: %(default)s, nothing)",
    )


def add_cache_arguments(parser: argparse.ArgumentParser, window_size: int = 1024) -> None:
    """Add the options that say how large the cache is; `window_size` is the default."""
    add = parser.add_argument
    help_of_window = "tokens in the cache, the sinks included (default: %(default)s)"
    add("--window_size", type=positive_int, default=window_size, help=help_of_window)
    add("--attention_sink_size", type=int, default=4, help="how many of them are sinks (default: %(default)s)")


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model runs, and where."""
    add = parser.add_argument
    add(
        "--model_name_or_path",
        default="meta-llama/Llama-2-7b-hf",
        help="a Hub id or a folder (default: %(default)s)",
    )
    add("--revision", default="main", help="branch, tag or commit on the Hub (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run the code that a Hub repository carries")
    add("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: all GPUs if there are any, else cpu)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="(default: float16 as in the original, float32 on cpu)",
    )


def check_sizes(args: argparse.Namespace) -> None:
    """ValueError unless sinks and window fit into each other."""
    if not 0 <= args.attention_sink_size < args.window_size:
        raise ValueError(
            f"--attention_sink_size {args.attention_sink_size} must be at least 0 and below --window_size "
            f"{args.window_size}, which counts sinks and recent tokens together."
        )


@contextmanager
def _named_errors(args: argparse.Namespace) -> Iterator[None]:
    """What goes wrong while a model is loaded becomes a ValueError that names the argument."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"--model_name_or_path {args.model_name_or_path} cannot be loaded: {error}") from error


def load_tokenizer(args: argparse.Namespace) -> transformers.PreTrainedTokenizerBase:
    """The model's own tokenizer; ValueError when it cannot be had."""
    with _named_errors(args):
        return transformers.AutoTokenizer.from_pretrained(
            args.model_name_or_path, revision=args.revision, trust_remote_code=args.trust_remote_code
        )


def load_model(args: argparse.Namespace) -> torch.nn.Module:
    """Plain Transformers, or streaming with or without sinks; ValueError when it cannot be loaded or cannot stream."""
    if args.experiment in ("transformers", "recompute"):
        return load_plain_model(args)
    sinks = args.attention_sink_size if args.experiment == "attention_sinks" else 0
    settings = {"attention_sink_size": sinks, "attention_sink_window_size": args.window_size - sinks}
    settings["attention_sink_cache_dtype"] = args.cache_dtype
    return _load(attention_sinks.AutoModelForCausalLM, args, **settings)


def load_plain_model(args: argparse.Namespace, **options) -> torch.nn.Module:
    """The model as Transformers loads it; ValueError when it cannot be loaded."""
    return _load(transformers.AutoModelForCausalLM, args, **options)


def _load(auto_class, args: argparse.Namespace, **options) -> torch.nn.Module:
    device_map, dtype = device_and_dtype(args.device, args.dtype)
    options |= {"revision": args.revision, "trust_remote_code": args.trust_remote_code, "device_map": device_map}
    with _named_errors(args):
        return auto_class.from_pretrained(args.model_name_or_path, dtype=dtype, **options).eval()
