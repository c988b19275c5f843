"""What this library's own Python costs per step: a model so small that only overhead counts.

A random Llama of 30 layers with a hidden size of 64 makes eager steps of one token, with attention sinks (cache 4+60)
and as plain Transformers runs it (DynamicCache). Both steps begin with 64 tokens in the cache: the plain cache is cut
back to 64 tokens before every step, outside the timed part. A second line says the same of the steps inside greedy
`generate`, where the plain cache grows from half the steps below 64 tokens to half the steps above.

The two take turns in one process. A round gives the median of its steps; printed are the median, the fastest and the
slowest round, and the median over the rounds of the ratio within a round. Nothing else should run meanwhile.

Example:
    python benchmark/speed/overhead.py --rounds 15 --steps 40
"""

import argparse
import copy
import csv
import statistics
from pathlib import Path
from time import perf_counter

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

import attention_sinks
from attention_sinks.versions import CACHE

SINKS, WINDOW = 4, 60
CONTEXT = SINKS + WINDOW
OURS, PLAIN = "attention_sinks", "transformers"
COLUMNS = ("measure", "contender", "median_ms", "low_ms", "high_ms", "ratio", "rounds", "steps", "threads", "layers")


class Clock(BaseStreamer):
    """Notes when `generate` hands out a token."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(perf_counter())

    def end(self):
        pass

    @property
    def step_ms(self) -> float:
        """Median milliseconds between two tokens, the first step of the call left out."""
        steps = [later - earlier for earlier, later in zip(self.times[2:], self.times[3:], strict=False)]
        return statistics.median(steps) * 1000


def build_models(layers: int) -> dict[str, torch.nn.Module]:
    """The same random Llama with attention sinks and without."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    plain = LlamaForCausalLM(config).eval()
    ours = copy.deepcopy(plain)
    return {OURS: attention_sinks.inject_attention_sinks(ours, SINKS, WINDOW), PLAIN: plain}


def filled_cache(model, ids: torch.Tensor):
    """The cache of `model` after it has read `ids` [1, tokens]."""
    return model(ids, use_cache=True)[CACHE]


def time_steps(models: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms of a forward call over one token, in every round; round 0 warms up and is dropped."""
    ids = torch.randint(256, (1, 2 * CONTEXT))
    caches = {OURS: filled_cache(models[OURS], ids), PLAIN: filled_cache(models[PLAIN], ids[:, :CONTEXT])}
    times = {name: [] for name in models}
    for number in range(rounds + 1):
        for name in in_turn(models, number):
            times[name].append(median_step_ms(models[name], caches[name], steps))
    return {name: values[1:] for name, values in times.items()}


def median_step_ms(model, cache, steps: int) -> float:
    times = []
    for token in torch.randint(256, (1, steps)).split(1, dim=1):
        start = perf_counter()
        model(token, **{CACHE: cache}, use_cache=True)
        times.append(perf_counter() - start)
        if (beyond := cache.get_seq_length() - CONTEXT) > 0 and not hasattr(cache, "nbytes"):
            cache.crop(-beyond)
    return statistics.median(times) * 1000


def time_generate(models: dict, rounds: int, steps: int) -> dict[str, list[float]]:
    """Median ms between two tokens of greedy `generate`, in every round; round 0 is dropped."""
    lengths = {OURS: 2 * CONTEXT, PLAIN: max(1, CONTEXT - steps // 2)}
    ids = {name: torch.randint(256, (1, length + 1)) for name, length in lengths.items()}
    caches = {name: filled_cache(models[name], ids[name][:, :-1]) for name in models}
    times = {name: [] for name in models}
    for number in range(rounds + 1):
        for name in in_turn(models, number):
            clock, mask = Clock(), torch.ones_like(ids[name])
            options = {CACHE: copy.deepcopy(caches[name]), "max_new_tokens": steps + 2, "do_sample": False}
            models[name].generate(ids[name], attention_mask=mask, streamer=clock, **options)
            times[name].append(clock.step_ms)
    return {name: values[1:] for name, values in times.items()}


def in_turn(models: dict, number: int) -> list[str]:
    """The contenders' names; which one is first changes from round to round."""
    return list(models) if number % 2 else list(reversed(models))


def summaries(measure: str, times: dict[str, list[float]]) -> list[dict]:
    """One row per contender: median, fastest and slowest round in ms, and the ratio to plain Transformers."""
    rows = []
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times[PLAIN], strict=True))
        spread = {"median_ms": statistics.median(values), "low_ms": min(values), "high_ms": max(values)}
        rows.append({"measure": measure, "contender": name, **spread, "ratio": ratio})
    return rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=15, help="rounds of each contender (default: %(default)s)")
    add("--steps", type=int, default=40, help="steps per round (default: %(default)s)")
    add("--threads", type=int, default=2, help="CPU threads of PyTorch (default: %(default)s)")
    add("--layers", type=int, default=30, help="layers of the model (default: %(default)s)")
    add("--output", type=Path, default=None, help="write the figures to this CSV file as well")
    args = parser.parse_args()
    for name in ("rounds", "steps", "threads", "layers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is below 1.")
    return args


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    models = build_models(args.layers)
    print(f"Llama of {args.layers} layers, hidden size 64, float32, cache {SINKS}+{WINDOW}, {args.threads} threads")
    rows = summaries("forward", time_steps(models, args.rounds, args.steps))
    rows += summaries("generate", time_generate(models, args.rounds, args.steps))
    print(f"{'ms/token':10}{'contender':17}{'median':>8}{'low':>8}{'high':>8}{'ratio':>8}")
    for row in rows:
        numbers = f"{row['median_ms']:8.2f}{row['low_ms']:8.2f}{row['high_ms']:8.2f}{row['ratio']:8.3f}"
        print(f"{row['measure']:10}{row['contender']:17}{numbers}")
    if args.output:
        facts = {name: getattr(args, name) for name in ("rounds", "steps", "threads", "layers")}
        with open(args.output, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({**row, **facts} for row in rows)
        print(args.output)


if __name__ == "__main__":
    main()
