"""What the demo scripts share: their options, loading the model, the logs, stopping with Ctrl-C, the summary."""

import json
import os
from datetime import datetime
from pathlib import Path

import torch
import transformers
from transformers import StoppingCriteria, TextStreamer, set_seed

from attention_sinks.command.terminal import show as show_in_terminal
from attention_sinks.settings import CACHE_DTYPES
from fetch_model import DEFAULT_OUTPUT_DIR

EXPERIMENTS = ("attention_sinks", "transformers", "windowed")


def add_common_arguments(parser, window_size, temperature):
    """Add the options of both demo scripts; `window_size` and `temperature` are the defaults that differ."""
    add = parser.add_argument
    experiments = (
        "attention_sinks (default): the first tokens and the most recent ones stay in the cache; windowed: only the "
        "most recent ones, without sinks; transformers: all of them"
    )
    model_help = "hub id or folder, default: models/SmolLM2-135M-Instruct, which demo/fetch_model.py makes"
    add("--experiment", choices=EXPERIMENTS, default="attention_sinks", help=experiments)
    add("--model_name_or_path", default=str(DEFAULT_OUTPUT_DIR), help=model_help)
    add("--revision", default="main", help="branch, tag or commit on the hub, default: %(default)s")
    add("--trust_remote_code", action="store_true", help="run the code that a hub repository carries")
    add("--window_size", type=int, default=window_size, help="tokens in the cache with its sinks, default: %(default)s")
    add("--attention_sink_size", type=int, default=4, help="how many of them are sinks, default: %(default)s")
    add(
        "--cache_dtype",
        choices=CACHE_DTYPES,
        default="auto",
        help="what keys and values are rounded to, except in plain Transformers, default: %(default)s, nothing",
    )
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: as it was saved")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps …; default: wherever accelerate finds room")
    add("--temperature", type=float, default=temperature, help="0 is greedy, default: %(default)s")
    add("--top_p", type=float, default=0.95, help="used when sampling, default: %(default)s")
    add("--seed", type=int, default=42, help="used when sampling, default: %(default)s")
    add("--log_file", type=Path, help="the text is also appended to this file, default: beside this script")


def load_model_and_tokenizer(args):
    """Load the model as `--experiment` asks, and its tokenizer; the same call but for where the class comes from."""
    if args.model_name_or_path == str(DEFAULT_OUTPUT_DIR) and not DEFAULT_OUTPUT_DIR.exists():
        raise SystemExit(
            f"--model_name_or_path: {DEFAULT_OUTPUT_DIR} does not exist yet. "
            "Run `python demo/fetch_model.py` first, or give a hub id or a folder."
        )
    source = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model_name_or_path, **source)
    if args.experiment == "transformers":
        auto_class = transformers.AutoModelForCausalLM
    else:
        from attention_sinks import AutoModelForCausalLM as auto_class

        source.update(cache_settings(args))
    model = auto_class.from_pretrained(args.model_name_or_path, dtype=args.dtype, device_map=args.device, **source)
    return model.eval(), tokenizer


def cache_settings(args):
    """Return the settings of the cache; `--window_size` counts all of it, sinks and recent tokens."""
    sink_size = args.attention_sink_size if args.experiment == "attention_sinks" else 0
    if not 0 <= sink_size < args.window_size:
        raise SystemExit(
            f"--attention_sink_size {sink_size} must be at least 0 and below --window_size {args.window_size}, "
            "which counts sinks and recent tokens together."
        )
    return {
        "attention_sink_size": sink_size,
        "attention_sink_window_size": args.window_size - sink_size,
        "attention_sink_cache_dtype": args.cache_dtype,
    }


def model_name(args):
    """The model's name without its folder or organisation."""
    return Path(os.path.abspath(args.model_name_or_path)).name


def describe(args):
    """Say in one line which model runs and what its cache keeps."""
    if args.experiment == "transformers":
        return f"{model_name(args)}: every token is kept (plain Transformers)"
    settings = cache_settings(args)
    sinks, recent = settings["attention_sink_size"], settings["attention_sink_window_size"]
    form = "" if args.cache_dtype == "auto" else f" in {args.cache_dtype}"
    return f"{model_name(args)}: {sinks} sinks and the {recent} most recent tokens are kept{form} ({args.experiment})"


def describe_run(args):
    """The same as the first line of a log in JSON; sizes are None where every token is kept."""
    keeps_all = args.experiment == "transformers"
    return {
        "experiment": args.experiment,
        "model": model_name(args),
        "attention_sink_size": None if keeps_all else cache_settings(args)["attention_sink_size"],
        "window_size": None if keeps_all else args.window_size,
        "started": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def sampling_settings(args):
    """Set the seed and return the arguments of `generate` that say how the next token is chosen."""
    set_seed(args.seed)
    if args.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}


class FileStreamer(TextStreamer):
    """Shows text in the terminal as it is generated and appends it to a log, in UTF-8.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Decodes the tokens; special tokens are left out.
    log_file : path
        Created with its folders; a later run is appended to it.
    """

    def __init__(self, tokenizer, log_file):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        log_file = Path(log_file)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self.file = log_file.open("a", encoding="utf-8")

    def write(self, text, show=True, dim=False):
        """Write `text` to the log and, if `show`, to the terminal, there perhaps dimmed."""
        if show:
            show_in_terminal(text, dim)
        self.file.write(text)
        self.file.flush()

    def on_finalized_text(self, text, stream_end=False):
        self.write(text + "\n" if stream_end else text)


def open_streamer(args, tokenizer, folder):
    """Open the log `<folder>/<experiment>/<model>.txt` beside this script and head this run's part of it."""
    default_log_file = Path(__file__).resolve().parent / folder / args.experiment / f"{model_name(args)}.txt"
    streamer = FileStreamer(tokenizer, args.log_file or os.path.relpath(default_log_file))
    streamer.write(f"# {describe(args)}\n")
    streamer.write(f"# {datetime.now():%Y-%m-%d %H:%M:%S}\n", show=False)
    return streamer


class JsonLog:
    """Appends one JSON object per line to a file, in UTF-8; without a file it writes nothing.

    Parameters
    ----------
    path : path or None
        Created with its folders; a later run is appended to it.
    """

    def __init__(self, path):
        self.file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")

    def write(self, entry):
        if self.file is not None:
            self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self.file.flush()


class StopWhen(StoppingCriteria):
    """Ends `generate` after the token being made, once `asked()` is true.

    An exception in the middle of a model call would leave some layers of the cache one token ahead of the others.
    """

    def __init__(self, asked):
        self.asked = asked

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.asked(), dtype=torch.bool, device=input_ids.device)


def cache_size(cache):
    """Return how many tokens of the stream the cache still holds, and its bytes."""
    if hasattr(cache, "tokens_cached"):
        return int(cache.tokens_cached.max()), cache.nbytes
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return cache.get_seq_length(), sum(tensor.nbytes for tensor in tensors)


def write_summary(streamer, cache, tokens_written, seconds, turns=None, turns_in_window=None):
    """Show what was streamed and what that cost; returns the figures."""
    streamed = cache.get_seq_length()
    cached, nbytes = cache_size(cache)
    rows = [("turns", f"{turns:,}")] if turns is not None else []
    if turns_in_window is not None:
        rows.append(("turns in the window", _numbers(turns_in_window)))
    rows += [
        ("tokens streamed", f"{streamed:,} ({streamed / cached:.1f} x what is in the cache)"),
        ("tokens in the cache", f"{cached:,}"),
        ("bytes of the cache", f"{nbytes:,}"),
        ("tokens/s", f"{tokens_written / seconds:.1f} ({tokens_written:,} generated in {seconds:.1f} s)"),
        ("log", streamer.file.name),
    ]
    streamer.write("\n" + "".join(f"{name:<22}{value}\n" for name, value in rows))
    figures = {"tokens_streamed": streamed, "tokens_cached": cached, "cache_bytes": nbytes}
    return {"turns": turns, **figures, "tokens_written": tokens_written, "seconds": round(seconds, 1)}


def _numbers(turns):
    """Say which turns these are, without a number for each of many."""
    if len(turns) > 1 and turns[-1] - turns[0] == len(turns) - 1:
        return f"{len(turns):,} (turns {turns[0]:,} to {turns[-1]:,})"
    return f"{len(turns):,}" + (f" (turn {', '.join(map(str, turns))})" if turns else "")
