"""Speed and memory of streaming with attention sinks beside plain Transformers, in one run with alternating rounds.

Single-token steps (ms/token) are made with a full cache. Beside them stand the steps of Transformers, whose
DynamicCache holds --window_size tokens, and the linear layers alone. --compiled adds both under torch.compile,
Transformers with a StaticCache; --cache_dtypes adds caches that round, --by_columns weights with other
strides, --original attention_sinks 0.4.0, and --llama_cpp llama.cpp with the same weights, weights and cache in 32 bits
and in 16. Long calls (tokens/s) begin with a new cache and stand beside one plain call of the same length.

The script also reports the peak memory above the weights, the bytes of the cache, and the time that reading weights and
cache takes at the rate at which the memory is copied. Figures are medians over the rounds, with the fastest and the
slowest round.

Examples:
    python benchmark/speed/speed.py --shape smollm2-135m --compiled
    python benchmark/speed/speed.py --shape llama-3.2-1b --device cuda --dtype bfloat16 --batch_size 8 --compiled
    bash benchmark/scripts/speed.sh    # with attention_sinks 0.4.0 in an environment of its own
"""

import argparse
import platform
import statistics
import tempfile
from itertools import product
from pathlib import Path

import torch
import transformers

import attention_sinks
from attention_sinks.settings import CACHE_DTYPES
from benchmark.lib.common import build_parser, cache_bytes, device_and_dtype, fail, positive_int
from benchmark.lib.experiments import add_cache_arguments, check_sizes
from benchmark.lib.results import write_csv
from benchmark.speed import timing
from benchmark.speed.contenders import (
    Dense,
    LinearLayers,
    StaticCompiled,
    Streaming,
    StreamingCompiled,
    by_columns,
    random_tokens,
    share_weights,
)
from benchmark.speed.elsewhere import Elsewhere
from benchmark.speed.shapes import SHAPES, build_shape

SINKS, SINKS_COMPILED = "attention_sinks", "attention_sinks compiled"
PLAIN, PLAIN_COMPILED, LINEAR, ORIGINAL = (
    "transformers",
    "transformers compiled",
    "linear_layers",
    "attention_sinks 0.4.0",
)
LLAMA_CPP = {"float32": "llama.cpp, 32 bits", "float16": "llama.cpp, 16 bits"}
FLOOR = "memory floor"
BY_COLUMNS = "weights by columns"
COLUMNS = [
    "measure",
    "contender",
    "unit",
    "median",
    "low",
    "high",
    "rounds",
    "vs_transformers",
    "vs_linear_layers",
    "vs_token_by_token",
    "peak_memory_bytes",
    "cache_bytes",
    "model",
    "device",
    "device_name",
    "dtype",
    "threads",
    "batch_size",
    "attention_sink_size",
    "window_size",
    "torch_version",
    "transformers_version",
]
LINE = "{:18} {:34} {:>9} {:>9} {:>9} {:8} {:>8} {:>8} {:>8} {:>9}"
"""One row as it is printed."""


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model_name_or_path", default=None, help="a model to load; the default is a shape instead")
    what.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="smollm2-135m",
        help="a Llama with random weights (default: %(default)s)",
    )
    add("--layers", type=positive_int, default=None, help="so many layers of the shape, to measure large caches sooner")
    add("--device", choices=("cpu", "cuda"), default=None, help="(default: cuda if there is one)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="(default: float32, cuda: float16)")
    add("--batch_size", type=positive_int, default=1, help="(default: %(default)s)")
    add("--compiled", action="store_true", help="measure compiled steps as well; compiling takes minutes")
    add(
        "--cache_dtypes",
        choices=[name for name in CACHE_DTYPES if name != "auto"],
        nargs="+",
        default=[],
        help="measure caches as well that round keys and values to these",
    )
    add(
        "--by_columns",
        action="store_true",
        help="measure a copy of the model as well whose linear layers have their weights column by column in memory",
    )
    add("--original", metavar="PYTHON", help="an interpreter that has attention_sinks 0.4.0, to measure it as well")
    add("--llama_cpp", metavar="PYTHON", help="an interpreter that has llama-cpp-python, to measure it as well")
    add_cache_arguments(parser)
    timing.add_timing_arguments(parser, rounds=7, steps=32)
    add("--calls", type=positive_int, nargs="*", default=[4096, 16384], help="long calls (default: %(default)s)")
    add("--call_rounds", type=positive_int, default=3, help="rounds of long calls (default: %(default)s)")
    add(
        "--plain_up_to",
        type=int,
        default=32768,
        metavar="TOKENS",
        help="longer calls are not made without attention sinks (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=None,
        help="CSV file, replaced if it exists (default: benchmark/outputs/speed/<model>_<device>_<dtype>.csv)",
    )
    return parser, parser.parse_args()


def load_models(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    """The plain model and a streaming one over the same weights."""
    device, dtype = device_and_dtype(args.device, args.dtype)
    if args.model_name_or_path:
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=dtype, device_map=device
        ).eval()
    else:
        plain = build_shape(args.shape, device, dtype, **changes_of(args))
    return {SINKS: streaming(share_weights(plain), args), PLAIN: plain}


def changes_of(args: argparse.Namespace) -> dict[str, int]:
    """What is changed in the shape."""
    return {} if args.layers is None else {"num_hidden_layers": args.layers}


def streaming(model: torch.nn.Module, args: argparse.Namespace) -> torch.nn.Module:
    return attention_sinks.inject_attention_sinks(
        model,
        attention_sink_size=args.attention_sink_size,
        attention_sink_window_size=args.window_size - args.attention_sink_size,
    )


def measure_steps(models: dict, others: dict, args: argparse.Namespace) -> list[dict]:
    """Single-token steps with a full cache, of `others` as well, which are contenders that run elsewhere."""
    plain, place = models[PLAIN], (args.window_size, args.batch_size)
    contenders = {SINKS: Streaming(models[SINKS], *place), PLAIN: Dense(plain, *place)}
    if args.compiled:
        contenders[SINKS_COMPILED] = StreamingCompiled(models[SINKS], *place)
        contenders[PLAIN_COMPILED] = StaticCompiled(plain, *place)
    if args.original:
        window = args.window_size - args.attention_sink_size
        sizes = {"sinks": args.attention_sink_size, "window": window, "threads": args.threads}
        contenders[ORIGINAL] = Elsewhere(
            args.original, ORIGINAL, config={**SHAPES[args.shape], **changes_of(args)}, **sizes
        )
    named = {SINKS: models[SINKS]}
    if args.by_columns:
        named[BY_COLUMNS] = streaming(by_columns(plain), args)
        contenders[f"{LINEAR}, {BY_COLUMNS}"] = LinearLayers(named[BY_COLUMNS], *place)
    for (kind, model), cache_dtype in product(named.items(), ("auto", *args.cache_dtypes)):
        told = [cache_dtype] * (cache_dtype != "auto") + [kind] * (kind != SINKS)
        if told:
            contenders[", ".join((SINKS, *told))] = Streaming(model, *place, cache_dtype)
            if args.compiled:
                contenders[", ".join((SINKS_COMPILED, *told))] = StreamingCompiled(model, *place, cache_dtype)
    contenders |= others
    contenders[LINEAR] = LinearLayers(plain, *place)
    times = timing.time_steps(contenders, plain, args.batch_size, args.rounds, args.steps)
    rows = []
    for name, contender in contenders.items():
        row = summary("single-token step", name, "ms/token", times[name], times[PLAIN])
        row["vs_linear_layers"] = timing.median_ratio(times[name], times[LINEAR])
        if (cache := getattr(contender, "cache", None)) is not None:
            row["cache_bytes"] = cache_bytes(cache)
            row["peak_memory_bytes"] = timing.peak_bytes(lambda c=contender: many_steps(c, plain, args), plain.device)
        rows.append(row)
    weights = sum(parameter.nbytes for parameter in plain.parameters())
    floor_ms = 1000 * (weights + rows[0]["cache_bytes"]) / timing.copy_rate(plain.device, plain.dtype)
    rows.append(summary("single-token step", FLOOR, "ms/token", [floor_ms] * args.rounds, times[PLAIN]))
    rows[-1]["vs_linear_layers"] = timing.median_ratio([floor_ms] * args.rounds, times[LINEAR])
    return rows


def llama_cpp_contenders(model: torch.nn.Module, args: argparse.Namespace) -> dict[str, Elsewhere]:
    """llama.cpp with the weights of `model`, and with these and the cache in 16 bits."""
    from benchmark.lib.gguf_writer import write_llama  # other runs do without the package gguf

    contenders = {}
    with tempfile.TemporaryDirectory() as folder:  # the files are mapped into memory once they are read
        for dtype, name in LLAMA_CPP.items():
            write_llama(model, path := f"{folder}/{dtype}.gguf", dtype)
            settings = {"model": path, "cache": dtype, "context": args.window_size, "threads": args.threads}
            contenders[name] = Elsewhere(args.llama_cpp, "llama.cpp", **settings)
    return contenders


def many_steps(contender, model: torch.nn.Module, args: argparse.Namespace) -> None:
    for token in random_tokens(model, args.steps, args.batch_size).split(1, dim=1):
        contender.prepare()
        contender.step(token)


def measure_calls(models: dict, length: int, step_ms: float, args: argparse.Namespace) -> list[dict]:
    """One call of `length` tokens with a new cache."""
    models = {name: model for name, model in models.items() if name == SINKS or length <= args.plain_up_to}
    speeds = timing.time_calls(models, length, args.batch_size, args.call_rounds)
    rows = [summary(f"call of {length}", name, "tokens/s", speeds[name], speeds.get(PLAIN)) for name in models]
    rows[0]["vs_token_by_token"] = rows[0]["median"] * step_ms / 1000 / args.batch_size
    for row in rows:
        model = models[row["contender"]]
        row["peak_memory_bytes"] = timing.peak_bytes(timing.long_call(model, length, args.batch_size), model.device)
    return rows


def summary(measure: str, contender: str, unit: str, values: list[float], plain: list[float] | None) -> dict:
    """One CSV row."""
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}
    compared = {"vs_transformers": timing.median_ratio(values, plain)} if plain else {}
    return {"measure": measure, "contender": contender, "unit": unit, **spread, **compared}


def environment(plain: torch.nn.Module, args: argparse.Namespace) -> dict:
    """What a reader must know to compare two files."""
    on_gpu = plain.device.type == "cuda"
    name = Path(args.model_name_or_path).name if args.model_name_or_path else args.shape
    return {
        "model": name if args.layers is None else f"{name}, {args.layers} layer{'s' * (args.layers > 1)}",
        "device": plain.device.type,
        "device_name": torch.cuda.get_device_name(plain.device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "dtype": str(plain.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "batch_size": args.batch_size,
        "attention_sink_size": args.attention_sink_size,
        "window_size": args.window_size,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }


def print_rows(rows: list[dict]) -> None:
    for row in rows:
        numbers = [f"{row[key]:.2f}" for key in ("median", "low", "high")]
        ratios = [
            f"{row[key]:.2f}" if key in row else ""
            for key in ("vs_transformers", "vs_linear_layers", "vs_token_by_token")
        ]
        peak = f"{row['peak_memory_bytes'] / 2**20:.1f}" if "peak_memory_bytes" in row else ""
        print(LINE.format(row["measure"], row["contender"], *numbers, row["unit"], *ratios, peak), flush=True)


@torch.inference_mode()
def main() -> None:
    parser, args = parse_args()
    if args.original and args.model_name_or_path:
        parser.error("--original measures a --shape; leave --model_name_or_path out.")
    if args.layers and args.model_name_or_path:
        parser.error("--layers changes a --shape; leave --model_name_or_path out.")
    if args.llama_cpp and args.batch_size > 1:
        parser.error("--llama_cpp measures one row; leave --batch_size out.")
    torch.set_num_threads(args.threads)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        check_sizes(args)
        models = load_models(args)
        contenders = {} if args.llama_cpp is None else llama_cpp_contenders(models[PLAIN], args)
    except (OSError, ValueError, NotImplementedError) as error:
        fail(parser, error)

    facts = environment(models[PLAIN], args)
    window = f"{args.attention_sink_size}+{args.window_size - args.attention_sink_size}"
    print(f"{facts['model']}, {facts['dtype']}, {facts['device_name']}, {args.threads} threads, cache {window} full")
    print(LINE.format("", "", "median", "low", "high", "", "x plain", "x linear", "x steps", "peak MiB"), flush=True)
    rows = measure_steps(models, contenders, args)
    print_rows(rows)
    step_ms = rows[0]["median"]
    for length in args.calls:
        rows += (new := measure_calls(models, length, step_ms, args))
        print_rows(new)
    path = args.output or Path("benchmark/outputs/speed") / "{model}_{device}_{dtype}.csv".format(**facts)
    write_csv(path, COLUMNS, [row | facts for row in rows])
    print(path)


if __name__ == "__main__":
    main()
