r"""How much attention every head of every layer pays to the first tokens of a text.

The script reads the text with plain Transformers and eager attention, without attention sinks. A head's share is the
part of a query's attention that goes to the first tokens, averaged over the queries of the second half of the text.
"even" says what the share would be if every query spread its attention evenly over the tokens before it. The figure is
a heat map; the CSV beside it holds the values (columns: layer, head, share).

Example:
    python benchmark/quality/attention_map.py --model_name_or_path models/SmolLM2-135M-Instruct \
        --dataset_name python-docs --output benchmark/outputs/attention_map.png
"""

import argparse

import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers
from matplotlib.ticker import MaxNLocator

from attention_sinks.versions import CACHE
from benchmark.data.corpus import CorpusError, add_corpus_arguments, read_tokens
from benchmark.lib.common import build_parser, fail, positive_int
from benchmark.lib.experiments import add_loading_arguments, load_plain_model, load_tokenizer
from benchmark.lib.styles import add_figure_arguments, finish

QUERIES_PER_CALL = 64  # bounds the memory of the attention weights


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = build_parser(__doc__)
    add = parser.add_argument
    add_loading_arguments(parser)
    add_corpus_arguments(parser, num_tokens=1024)
    add("--first_tokens", type=positive_int, default=4, help="how many of them are looked at (default: %(default)s)")
    add_figure_arguments(parser)
    return parser, parser.parse_args()


@torch.inference_mode()
def shares(model, input_ids: torch.Tensor, first_tokens: int) -> tuple[torch.Tensor, float]:
    """Mean share of attention on the first tokens, [layers, heads], and what it would be if spread evenly."""
    input_ids, half = input_ids.to(model.device), input_ids.shape[1] // 2
    cache = model(input_ids[:, :half], use_cache=True, logits_to_keep=1)[CACHE]
    total = 0
    for queries in input_ids[:, half:].split(QUERIES_PER_CALL, dim=1):
        outputs = model(queries, **{CACHE: cache}, use_cache=True, output_attentions=True, logits_to_keep=1)
        cache = outputs[CACHE]
        if not outputs.attentions or any(weights is None for weights in outputs.attentions):
            raise ValueError(f"{model.config.model_type} returns no attention weights; choose another model.")
        total += torch.stack([_on_first(weights, first_tokens) for weights in outputs.attentions])
    count = input_ids.shape[1] - half
    even = sum(first_tokens / (t + 1) for t in range(half, input_ids.shape[1])) / count
    return total / count, even


def _on_first(weights: torch.Tensor, first_tokens: int) -> torch.Tensor:
    """Sum over queries of the weights [1, heads, queries, keys] on the first keys; [heads]."""
    return weights[0, :, :, :first_tokens].float().sum(dim=(1, 2)).cpu()


def check(args: argparse.Namespace) -> None:
    if args.first_tokens * 4 > args.num_tokens:
        raise ValueError(
            f"--first_tokens {args.first_tokens} must be at most a quarter of --num_tokens {args.num_tokens}."
        )
    if args.output is not None and args.output.suffix == ".csv":
        raise ValueError(f"--output {args.output} must be a picture; its CSV is written beside it.")


def draw(share: torch.Tensor, args: argparse.Namespace) -> plt.Figure:
    layers, heads = share.shape
    figure, panel = plt.subplots(layout="constrained", figsize=(2.5 + 0.25 * layers, 1.5 + 0.22 * heads))
    image = panel.imshow(100 * share.T.numpy(), vmin=0, vmax=100, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=panel, label=f"attention on the\nfirst {args.first_tokens} tokens (%)")
    panel.set(xlabel="layer", ylabel="head")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def main() -> None:
    parser, args = parse_args()
    try:
        check(args)
        input_ids = read_tokens(args, load_tokenizer(args))
        model = load_plain_model(args, attn_implementation="eager")
        share, even = shares(model, input_ids, args.first_tokens)
        finish(lambda: draw(share, args), args.output, args.title)
    except (CorpusError, OSError, ValueError) as error:
        fail(parser, error)
    if args.output:
        rows = [(layer, head, round(float(s), 5)) for layer, row in enumerate(share) for head, s in enumerate(row)]
        pd.DataFrame(rows, columns=["layer", "head", "share"]).to_csv(args.output.with_suffix(".csv"), index=False)
    print(f"mean {share.mean():.1%}, in {(share > 0.5).float().mean():.0%} of the heads above half; even: {even:.2%}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main()
