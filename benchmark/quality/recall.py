r"""What a model still finds in its stream: the paper's StreamEval, or multiple-choice questions from a file.

Without --questions, lines such as "red lamp: 4821." are read, and every 10 lines the number of the line 20 lines back
must be given. An answer is right when all its tokens are the model's first choice. The right answer then stands in the
stream, whatever the model would have said, so all experiments read the same text, in calls of any length. With
--questions, every question of the file is followed by its right answer; a model's answer is the likeliest label.

Columns of <output_dir>/<experiment>.csv: stream_tokens (tokens before the answer), distance_lines and distance_tokens
(how far back the number stands), correct (0 or 1), nll (of the answer, nats per token).

Example:
    python benchmark/quality/recall.py --model_name_or_path models/SmolLM2-135M-Instruct --distances 20 40 80
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import transformers
from tqdm import tqdm

from attention_sinks.versions import CACHE
from benchmark.data.corpus import CorpusError, iter_rows
from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.experiments import add_model_arguments, check_sizes, load_model, load_tokenizer
from benchmark.quality.streameval import Query, judge, line_stream, question_stream


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_model_arguments(parser, experiments=("attention_sinks", "transformers", "windowed"))
    add("--num_tokens", type=positive_int, default=8192, help="length of the stream (default: %(default)s)")
    add("--query_every", type=positive_int, default=10, metavar="LINES", help="(default: %(default)s)")
    add(
        "--distances",
        type=positive_int,
        nargs="+",
        default=[20],
        metavar="LINES",
        help="how far back to ask, multiples of --query_every; one query each (default: 20)",
    )
    add("--seed", type=int, default=0, help="of names and numbers (default: %(default)s)")
    add(
        "--questions",
        default=None,
        metavar="DATASET",
        help="multiple-choice questions instead of lines: a Hub id, folder or file with the columns question, choices "
        "and answerKey, as ARC has them",
    )
    add("--task", default=None, help="the questions' configuration, such as ARC-Easy")
    add("--split", default="test", help="the questions' split (default: %(default)s)")
    add("--chunk_size", type=positive_int, default=1024, help="tokens per model call (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("benchmark/outputs/recall"), help="(default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing CSV")
    return parser, parser.parse_args()


def make_stream(args: argparse.Namespace, tokenizer) -> tuple[list[int], list[Query]]:
    """The token ids of the stream and its queries; ValueError or CorpusError when there are none."""

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    if args.questions:
        ids, queries = question_stream(encode, args.num_tokens, iter_rows(args.questions, args.task, args.split))
    else:
        ids, queries = line_stream(encode, args.num_tokens, args.distances, args.query_every, args.seed)
    if not queries:
        raise ValueError(f"--num_tokens {args.num_tokens} holds no query; raise it or lower --distances.")
    return ids, queries


@torch.inference_mode()
def read(model, ids: list[int], chunk_size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Feed the stream; yield where each call begins and its logits [tokens, vocabulary]."""
    cache = None
    for begin in tqdm(range(0, len(ids), chunk_size), unit_scale=chunk_size, unit="tok"):
        inputs = torch.tensor([ids[begin : begin + chunk_size]], device=model.device)
        outputs = model(inputs, **{CACHE: cache}, use_cache=True)
        cache = outputs[CACHE]
        yield begin, outputs.logits[0]


def main() -> None:
    parser, args = parse_args()
    path = args.output_dir / f"{args.experiment}.csv"
    try:
        check_sizes(args)
        if path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists: pass --overwrite to replace it, or another --output_dir.")
        ids, queries = make_stream(args, load_tokenizer(args))
        model = load_model(args)
    except (CorpusError, OSError, ValueError) as error:
        fail(parser, error)
    judged = judge(queries, read(model, ids, args.chunk_size))
    frame = pd.DataFrame(
        {
            "stream_tokens": [query.start for query in queries],
            "distance_lines": [query.distance_lines for query in queries],
            "distance_tokens": [query.distance_tokens for query in queries],
            "correct": [int(right) for right, _ in judged],
            "nll": [round(nll, 4) for _, nll in judged],
        }
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    print(
        frame.groupby(frame["distance_lines"] // args.query_every * args.query_every)["correct"].agg(["mean", "size"])
    )
    print(f"{len(frame)} queries in {len(ids)} tokens, {frame['correct'].mean():.1%} right: {path}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
