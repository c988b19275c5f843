"""How many Python frames this package enters for one generated token, in how many functions and files.

Greedy `generate` runs on a tiny random Llama (2 layers, hidden size 64, 4 heads) with one row and a full cache. Every
frame of a file below attention_sinks/ counts, also the frame of a comprehension, which Python 3.12 and later no longer
enter. Frames of PyTorch and Transformers do not count. A change of file is a frame of another file than the frame
before it.

The script looks at 100 tokens, in which the ring of the cache goes round several times. Most tokens take the same path:
its counts are printed as "typical". The mean and the largest count also see the tokens at which the ring begins anew.
The counts are the same in every run, but they depend on the releases of Python and Transformers.

Examples:
    python benchmark/speed/frames.py
    python benchmark/speed/frames.py --verbose    # the frames of each function as well
"""

import argparse
import platform
import statistics
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import CodeType

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import attention_sinks
from benchmark.lib.common import build_parser, positive_int
from benchmark.speed.contenders import random_tokens
from benchmark.speed.shapes import build_shape

PACKAGE = Path(attention_sinks.__file__).resolve().parent
SINKS, WINDOW = 4, 28
WARM_UP, TOKENS = 4, 100  # the first step after a prompt prepares what later steps use again


class FrameCounter(BaseStreamer):
    """A streamer that collects the frames of the package that are entered between one token and the next.

    Attributes
    ----------
    tokens : list of list of code objects
        For every token, the code of each frame in the order of entry.
    """

    def __init__(self):
        self.tokens: list[list[CodeType]] = []
        self._entered: list[CodeType] = []

    def profile(self, frame, event, argument) -> None:
        """What `sys.setprofile` is given."""
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            self._entered.append(frame.f_code)

    def put(self, value) -> None:
        self.tokens.append(self._entered)
        self._entered = []

    def end(self) -> None:
        pass


def count_frames(layers: int = 2) -> list[list[CodeType]]:
    """The frames of the package for each of `TOKENS` generated tokens, the cache being full."""
    plain = build_shape("tiny", "cpu", torch.float32, num_hidden_layers=layers, eos_token_id=None)
    model, counter = attention_sinks.inject_attention_sinks(plain, SINKS, WINDOW), FrameCounter()
    ids = random_tokens(model, 2 * (SINKS + WINDOW))
    options = {"max_new_tokens": WARM_UP + TOKENS, "do_sample": False, "streamer": counter}
    previous = sys.getprofile()
    sys.setprofile(counter.profile)
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    finally:
        sys.setprofile(previous)
    return counter.tokens[-TOKENS:]


def counts(frames: list[CodeType]) -> dict[str, int]:
    """Frames, functions, files and changes of file of one token."""
    files = [code.co_filename for code in frames]
    return {
        "frames": len(frames),
        "functions": len(set(frames)),
        "files": len(set(files)),
        "changes of file": sum(before != after for before, after in pairwise(files)),
    }


def function_lines(frames: list[CodeType]) -> list[str]:
    """One line per function, those of one file together: frames, place, name."""
    functions = Counter((_file(code), code.co_firstlineno, code.co_name) for code in frames)
    return [f"{count:5}  {file}:{line} {name}" for (file, line, name), count in sorted(functions.items())]


def _file(code: CodeType) -> str:
    return Path(code.co_filename).resolve().relative_to(PACKAGE).as_posix()


def parse_args() -> argparse.Namespace:
    parser = build_parser(__doc__)
    parser.add_argument("--layers", type=positive_int, default=2, help="layers of the model (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print the frames of each function of a typical token")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tokens = count_frames(args.layers)
    typical = sorted(tokens, key=len)[len(tokens) // 2]
    each = [counts(frames) for frames in tokens]
    print(
        f"Llama of {args.layers} layers, cache {SINKS}+{WINDOW} full, {len(tokens)} tokens, Python "
        f"{platform.python_version()}, Transformers {transformers.__version__}"
    )
    print(f"{'per generated token':20}{'typical':>9}{'mean':>9}{'largest':>9}")
    for name, number in counts(typical).items():
        values = [token[name] for token in each]
        print(f"{name:20}{number:9}{statistics.mean(values):9.1f}{max(values):9}")
    if args.verbose:
        print("\nframes of a typical token")
        print("\n".join(function_lines(typical)))


if __name__ == "__main__":
    main()
