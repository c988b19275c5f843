r"""Perplexity, memory and latency of a model along one long text, written row by row to <output_dir>/<experiment>.csv.

Columns: input_length (tokens read so far), nll (nats per token), ppl = exp(nll), overall_ppl (from the start of the
text), cuda_vram_allocated (GiB, 0 without CUDA), latency (seconds per token), cache_bytes, rss (GiB, the process).

Example, without any network once the model is there:
    python benchmark/perplexity.py --model_name_or_path models/SmolLM2-135M-Instruct --dataset_name python-docs \
        --chunk_size 512
"""

import argparse
import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import psutil
import torch
import transformers
from tqdm import tqdm

import attention_sinks
from common import cache_bytes, device_and_dtype, positive_int
from corpus import CorpusError, iter_texts

COLUMNS = ["input_length", "nll", "ppl", "overall_ppl", "cuda_vram_allocated", "latency", "cache_bytes", "rss"]
GIB = 2**30


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
    )
    add = parser.add_argument
    add(
        "--experiment",
        choices=("attention_sinks", "transformers", "windowed"),
        default="attention_sinks",
        help="attention_sinks: sinks and window; transformers: plain dense attention; windowed: the same window "
        "without sinks (default: %(default)s)",
    )
    add("--model_name_or_path", default="meta-llama/Llama-2-7b-hf")
    add("--revision", default="main")
    add("--trust_remote_code", action="store_true")
    add(
        "--dataset_name",
        default="emozilla/pg19-test",
        help="a Hub id, a folder, a file (.txt, .jsonl, .json, .parquet, .csv), or python-docs: Python's own language "
        "reference, which needs no network (default: %(default)s)",
    )
    add("--data_column", default="text", help="the dataset's column that holds the text (default: %(default)s)")
    add("--task", default=None, help="the dataset's configuration, where it has several")
    add("--split", default="test", help="the dataset's split, such as test or validation (default: %(default)s)")
    add("--num_tokens", type=positive_int, default=8192, help="tokens of the text to read (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("benchmark/outputs"), help="(default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing CSV")
    add(
        "--window_size",
        type=positive_int,
        default=1024,
        help="tokens in the cache, the sinks included (default: %(default)s)",
    )
    add("--attention_sink_size", type=int, default=4, help="how many of them are sinks (default: %(default)s)")
    add("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: all GPUs if there are any, else cpu)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=None,
        help="(default: float16 as in the original, float32 on cpu)",
    )
    add(
        "--chunk_size",
        type=positive_int,
        default=1,
        help="tokens per model call; 1 measures the latency of generation, larger calls give the same nll several "
        "times faster (default: %(default)s)",
    )
    add(
        "--report_every",
        type=positive_int,
        default=1,
        metavar="N",
        help="one CSV row per N tokens, for a smaller file; nll and latency are then the mean of those N tokens "
        "(default: %(default)s)",
    )
    return parser


def load_model(args: argparse.Namespace) -> torch.nn.Module:
    """Load the model of an experiment: plain Transformers, or streaming with or without sinks."""
    device_map, dtype = device_and_dtype(args.device, args.dtype)
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code, "device_map": device_map}
    options["dtype"] = dtype
    if args.experiment == "transformers":
        return transformers.AutoModelForCausalLM.from_pretrained(args.model_name_or_path, **options).eval()
    sinks = args.attention_sink_size if args.experiment == "attention_sinks" else 0
    return attention_sinks.AutoModelForCausalLM.from_pretrained(
        args.model_name_or_path,
        attention_sink_size=sinks,
        attention_sink_window_size=args.window_size - sinks,
        **options,
    ).eval()


def load_tokens(args: argparse.Namespace) -> torch.Tensor:
    """Return the first `num_tokens` token ids of the corpus's first document, shape [1, num_tokens]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        args.model_name_or_path, revision=args.revision, trust_remote_code=args.trust_remote_code
    )
    text = next(iter_texts(args.dataset_name, args.data_column, args.task, args.split), "")
    input_ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    if input_ids.shape[1] < args.num_tokens:
        raise CorpusError(
            f"--num_tokens {args.num_tokens} is more than the text's {input_ids.shape[1]} tokens; "
            "lower it or choose a longer text with --dataset_name."
        )
    return input_ids[:, : args.num_tokens]


@torch.inference_mode()
def read_text(model, input_ids: torch.Tensor, chunk_size: int) -> Iterator[tuple[list[float], float, object]]:
    """Feed the text in calls of `chunk_size`; yield each call's NLL per token (nats), seconds per token and cache."""
    cache = None
    input_ids = input_ids.to(model.device)
    for inputs, labels in zip(input_ids[:, :-1].split(chunk_size, 1), input_ids[0, 1:].split(chunk_size), strict=True):
        start = perf_counter()
        outputs = model(inputs, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        nlls = torch.nn.functional.cross_entropy(
            outputs.logits[0].float(), labels.to(outputs.logits.device), reduction="none"
        ).tolist()
        del outputs  # its logits would otherwise live through the next call
        yield nlls, (perf_counter() - start) / len(nlls), cache


def memory_now(cache) -> dict[str, float]:
    """The memory columns of a row."""
    return {
        "cuda_vram_allocated": sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count()))) / GIB,
        "cache_bytes": cache_bytes(cache),
        "rss": psutil.Process().memory_info().rss / GIB,
    }


def make_rows(calls, report_every: int, total: int) -> Iterator[list[dict]]:
    """Turn each call into its CSV rows; tokens short of a row wait for the next call."""
    waiting, done, nll_sum = [], 0, 0.0
    for nlls, latency, cache in calls:
        waiting += [(nll, latency) for nll in nlls]
        memory, rows = memory_now(cache), []
        while len(waiting) >= report_every or (waiting and done + len(waiting) == total):
            block, waiting = waiting[:report_every], waiting[report_every:]
            done += len(block)
            nll = sum(nll for nll, _ in block) / len(block)
            nll_sum += nll * len(block)
            seconds = sum(latency for _, latency in block) / len(block)
            scores = {"nll": nll, "ppl": math.exp(nll), "overall_ppl": math.exp(nll_sum / done), "latency": seconds}
            rows.append({"input_length": done, **scores, **memory})
        yield rows


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    csv_path = args.output_dir / f"{args.experiment}.csv"
    if csv_path.exists() and not args.overwrite:
        parser.error(f"{csv_path} exists: pass --overwrite to replace it, or another --output_dir.")
    if args.window_size <= args.attention_sink_size:
        parser.error(
            f"--window_size {args.window_size} must be above --attention_sink_size {args.attention_sink_size}."
        )
    if args.num_tokens < 2:
        parser.error("--num_tokens must be at least 2: the first token is only read, never predicted.")
    try:
        input_ids = load_tokens(args)
        model = load_model(args)
    except (CorpusError, OSError, ValueError, NotImplementedError) as error:
        parser.error(str(error))

    total = input_ids.shape[1] - 1
    calls = read_text(model, input_ids, args.chunk_size)
    csv_path.parent.mkdir(parents=True, exist_ok=True)
    # A big buffer flushed once per call: the file only ever ends in a whole row.
    with open(csv_path, "w", newline="", buffering=1 << 24) as file, tqdm(total=total, unit="tok") as progress:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            for rows in make_rows(calls, args.report_every, total):
                writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in rows)
                file.flush()
                if rows:
                    progress.set_postfix({"nll": f"{rows[-1]['nll']:.3f}", "ppl": f"{rows[-1]['overall_ppl']:.2f}"})
                    progress.update(rows[-1]["input_length"] - progress.n)
        except KeyboardInterrupt:
            print(f"\nInterrupted: {csv_path} holds the first {progress.n} tokens.", file=sys.stderr)
            sys.exit(130)
    print(f"{total} tokens, overall perplexity {rows[-1]['overall_ppl']:.3f}: {csv_path}")


if __name__ == "__main__":
    main()
