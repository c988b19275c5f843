r"""Perplexity, memory and latency of one model with attention sinks, with dense attention and with a window.

The presets are the models that attention_sinks 0.4.0 was measured with, each read as far as it was read there. The
script runs perplexity.py three times, each in a process of its own, and then plot_perplexity.py. Results go to
benchmark/outputs/<preset>/. A run that was broken off goes on where it ended. All further options are those of
perplexity.py; they override the preset. The text is a book of PG-19 from the Hub, unless --dataset_name says otherwise.
--chunk_size 1, the default, measures the latency of generation; 1024 gives the same NLL an order faster.

Examples:
    python benchmark/quality/compare.py llama
    python benchmark/quality/compare.py mistral --model_name_or_path my/mistral --chunk_size 1024 --device cuda
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmark.lib.common import build_parser


@dataclass(frozen=True)
class Preset:
    """A model and how far it is read.

    Attributes
    ----------
    model : str
        A Hub id.
    sinks, dense, windowed : int, default=8192
        Tokens of the text that are read with attention sinks, with plain Transformers and with a window alone.
    window_size : int, default=1024
        Tokens in the cache, the sinks included.
    trust_remote_code : bool, default=False
        Whether the tokenizer or the plain model needs the code of its repository.
    """

    model: str
    sinks: int = 8192
    dense: int = 8192
    windowed: int = 8192
    window_size: int = 1024
    trust_remote_code: bool = False

    def runs(self) -> dict[str, int]:
        """Tokens to read, by experiment."""
        return {"attention_sinks": self.sinks, "transformers": self.dense, "windowed": self.windowed}

    def options(self) -> list[str]:
        """The options of perplexity.py that all three runs have in common."""
        options = ["--model_name_or_path", self.model, "--window_size", str(self.window_size)]
        return [*options, "--trust_remote_code"] if self.trust_remote_code else options


PRESETS = {
    "btlm": Preset("cerebras/btlm-3b-8k-base", 16384, 16384, 16384, window_size=2048, trust_remote_code=True),
    "falcon": Preset("tiiuae/falcon-7b", dense=5000),
    "gptj": Preset("EleutherAI/gpt-j-6b"),
    "llama": Preset("meta-llama/Llama-2-7b-hf", dense=7000, windowed=2000),
    "mistral": Preset("mistralai/Mistral-7B-v0.1", sinks=16384, dense=14000),
    "mpt": Preset("mosaicml/mpt-7b", dense=2048, windowed=4000),
    "pythia": Preset("EleutherAI/pythia-6.9b"),
    "qwen": Preset("Qwen/Qwen-7B", trust_remote_code=True),
    "stablelm_epoch": Preset("stabilityai/stablelm-3b-4e1t"),
    "yi": Preset("01-ai/Yi-6B"),
}


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """The preset and the folder, and what is passed on to perplexity.py."""
    parser = build_parser(__doc__)
    parser.allow_abbrev = False
    parser.add_argument("preset", choices=tuple(PRESETS))
    parser.add_argument("--output_dir", type=Path, default=None, help="(default: benchmark/outputs/<preset>)")
    return parser.parse_known_args()


def run(script: str, *arguments: object) -> None:
    """Run benchmark/quality/<script>.py to its end; SystemExit with its exit code when it fails."""
    try:
        done = subprocess.run([sys.executable, "-m", f"benchmark.quality.{script}", *map(str, arguments)])
    except KeyboardInterrupt:
        sys.exit(130)  # the script has said how to go on
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    args, further = parse_args()
    preset, output = PRESETS[args.preset], args.output_dir or Path("benchmark/outputs", args.preset)
    for experiment, tokens in preset.runs().items():
        which = ("--experiment", experiment, "--num_tokens", tokens, "--output_dir", output, "--resume")
        run("perplexity", *which, *preset.options(), *further)
    picture = ("--features", "perplexity", "vram", "--log_perplexity_limit", 4, "--title", args.preset)
    run("plot_perplexity", "--output_dir", output, "--output", output / f"{args.preset}.png", *picture)


if __name__ == "__main__":
    main()
