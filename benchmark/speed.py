"""Speed and memory of streaming with attention sinks beside plain Transformers, in one run with alternating rounds.

Single-token step with a full cache (ms/token), beside Transformers with a DynamicCache at the same context and
beside the linear layers alone; calls of thousands of tokens (tokens/s) beside one plain call of the same length;
peak memory above the weights; bytes of the cache. Medians over the rounds, with the fastest and slowest round.

Examples:
    python benchmark/speed.py --shape smollm2-135m
    python benchmark/speed.py --model_name_or_path meta-llama/Llama-3.2-1B --device cuda --dtype bfloat16
"""

import argparse
import csv
import platform
import statistics
from pathlib import Path

import torch
import transformers

import attention_sinks
import timing
from common import cache_bytes, device_and_dtype, positive_int
from shapes import SHAPES, build_shape

SINKS, PLAIN, LINEAR = "attention_sinks", "transformers", "linear_layers"
COLUMNS = [
    "measure",
    "contender",
    "unit",
    "median",
    "low",
    "high",
    "rounds",
    "vs_transformers",
    "vs_token_by_token",
    "peak_memory_bytes",
    "cache_bytes",
    "cache_bytes_formula",
    "model",
    "device",
    "device_name",
    "dtype",
    "threads",
    "attention_sink_size",
    "window_size",
    "torch_version",
    "transformers_version",
]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model_name_or_path", default=None, help="a model to load; the default is a shape instead")
    what.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="smollm2-135m",
        help="a Llama with random weights (default: %(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), default=None, help="(default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="(default: float32, cuda: float16)")
    add("--threads", type=positive_int, default=2, help="CPU threads of PyTorch (default: %(default)s)")
    add(
        "--window_size",
        type=positive_int,
        default=1024,
        help="tokens in the cache, sinks included, and the context of plain Transformers (default: %(default)s)",
    )
    add("--attention_sink_size", type=int, default=4, help="(default: %(default)s)")
    add("--rounds", type=positive_int, default=7, help="rounds of single steps (default: %(default)s)")
    add("--steps", type=positive_int, default=32, help="single steps per round (default: %(default)s)")
    add("--calls", type=positive_int, nargs="*", default=[4096, 8192], help="long calls (default: %(default)s)")
    add("--call_rounds", type=positive_int, default=3, help="rounds of long calls (default: %(default)s)")
    add(
        "--output",
        type=Path,
        default=None,
        help="CSV file, replaced if it exists (default: benchmark/outputs_speed/<model>_<device>_<dtype>.csv)",
    )
    return parser


def load_models(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """The plain model and a streaming one over the same weights."""
    device, dtype = device_and_dtype(args.device, args.dtype)
    if args.model_name_or_path:
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=dtype, device_map=device
        ).eval()
    else:
        plain = build_shape(args.shape, device, dtype)
    streaming = attention_sinks.inject_attention_sinks(
        timing.share_weights(plain),
        attention_sink_size=args.attention_sink_size,
        attention_sink_window_size=args.window_size - args.attention_sink_size,
    )
    return {SINKS: streaming, PLAIN: plain}


def formula_bytes(dense_cache, sinks: int, window: int) -> int:
    """Bytes of keys and values in a full cache with re-rotated sinks, from the shapes of a plain cache's layers."""
    total = 0
    for layer in dense_cache.layers:
        rows, heads, _, key_width = layer.keys.shape
        value_width = layer.values.shape[-1]
        numbers = (sinks + window + 1) * (key_width + value_width) + sinks * key_width
        total += rows * heads * numbers * layer.keys.element_size()
    return total


def measure_steps(models: dict, args: argparse.Namespace) -> list[dict]:
    """Single-token steps with a full cache."""
    plain = models[PLAIN]
    contenders = {
        SINKS: timing.Streaming(models[SINKS], args.window_size),
        PLAIN: timing.Dense(plain, args.window_size, args.steps),
        LINEAR: timing.LinearLayers(plain),
    }
    times = timing.time_steps(contenders, plain, args.rounds, args.steps)
    rows = [summary("single-token step", name, "ms/token", times[name], times[PLAIN]) for name in contenders]
    token = timing.random_tokens(plain, 1)
    for row in rows[:2]:
        contender = contenders[row["contender"]]
        contender.begin_round()
        row["peak_memory_bytes"] = timing.peak_bytes(
            lambda c=contender: [c.step(token) for _ in range(args.steps)], plain.device
        )
        row["cache_bytes"] = cache_bytes(contender.cache)
    sinks = args.attention_sink_size
    rows[0]["cache_bytes_formula"] = formula_bytes(contenders[PLAIN].context, sinks, args.window_size - sinks)
    return rows


def measure_calls(models: dict, length: int, step_ms: float, args: argparse.Namespace) -> list[dict]:
    """One call of `length` tokens with a new cache."""
    speeds = timing.time_calls(models, length, args.call_rounds)
    rows = [summary(f"call of {length}", name, "tokens/s", speeds[name], speeds[PLAIN]) for name in models]
    rows[0]["vs_token_by_token"] = rows[0]["median"] * step_ms / 1000
    for row in rows:
        model = models[row["contender"]]
        row["peak_memory_bytes"] = timing.peak_bytes(timing.long_call(model, length), model.device)
    return rows


def summary(measure: str, contender: str, unit: str, values: list[float], plain: list[float]) -> dict:
    """One CSV row; the ratio is the median over rounds, so that what slows a whole round cancels."""
    ratio = statistics.median(value / other for value, other in zip(values, plain, strict=True))
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}
    return {"measure": measure, "contender": contender, "unit": unit, **spread, "vs_transformers": ratio}


def environment(plain: torch.nn.Module, args: argparse.Namespace) -> dict:
    """What a reader must know to compare two files."""
    on_gpu = plain.device.type == "cuda"
    return {
        "model": Path(args.model_name_or_path).name if args.model_name_or_path else args.shape,
        "device": plain.device.type,
        "device_name": torch.cuda.get_device_name(plain.device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "dtype": str(plain.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "attention_sink_size": args.attention_sink_size,
        "window_size": args.window_size,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }


def print_table(rows: list[dict]) -> None:
    header = ("", "", "median", "low", "high", "", "x plain", "x steps", "peak MiB")
    line = "{:18} {:16} {:>9} {:>9} {:>9} {:8} {:>8} {:>8} {:>9}"
    print(line.format(*header))
    for row in rows:
        steps = f"{row['vs_token_by_token']:.1f}" if "vs_token_by_token" in row else ""
        peak = f"{row['peak_memory_bytes'] / 2**20:.1f}" if "peak_memory_bytes" in row else ""
        numbers = [f"{row[key]:.2f}" for key in ("median", "low", "high")]
        ratio = f"{row['vs_transformers']:.2f}"
        print(line.format(row["measure"], row["contender"], *numbers, row["unit"], ratio, steps, peak))


def write_csv(path: Path, rows: list[dict], facts: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row | facts for row in rows)


@torch.inference_mode()
def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.window_size <= args.attention_sink_size:
        parser.error(
            f"--window_size {args.window_size} must be above --attention_sink_size {args.attention_sink_size}."
        )
    torch.set_num_threads(args.threads)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        models = load_models(args)
    except (OSError, ValueError, NotImplementedError) as error:
        parser.error(str(error))

    facts = environment(models[PLAIN], args)
    window = f"{args.attention_sink_size}+{args.window_size - args.attention_sink_size}"
    print(f"{facts['model']}, {facts['dtype']}, {facts['device_name']}, {args.threads} threads, cache {window} full")
    rows = measure_steps(models, args)
    step_ms = rows[0]["median"]
    for length in args.calls:
        rows += measure_calls(models, length, step_ms, args)
    print_table(rows)
    held, keys_and_values = rows[0]["cache_bytes"], rows[0]["cache_bytes_formula"]
    print(f"cache: {held:,} bytes = {keys_and_values:,} of keys and values + {held - keys_and_values:,} of counters")
    path = args.output or Path("benchmark/outputs_speed") / "{model}_{device}_{dtype}.csv".format(**facts)
    write_csv(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
