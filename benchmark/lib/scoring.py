"""How a text is read: the NLL of every token, call by call, with a cache that streams or without any."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.nn.functional import cross_entropy
from transformers import Cache

from attention_sinks.versions import CACHE

READING_CALL = 1024  # tokens per call where nothing is scored


@dataclass(frozen=True)
class ScoredCall:
    """What one model call says about the tokens that follow its inputs.

    Attributes
    ----------
    nlls : list of float
        Negative log-likelihood of each next token, in nats.
    seconds : float
        Per token.
    cache : transformers.Cache or None
        After the call.
    """

    nlls: list[float]
    seconds: float
    cache: Cache | None


@torch.inference_mode()
def stream_scores(model, input_ids: torch.Tensor, chunk_size: int, start: int = 0) -> Iterator[ScoredCall]:
    """Feed `input_ids` [1, tokens] in calls of `chunk_size`; scores begin with the token after input `start`.

    What comes before `start` is only read, in long calls: cutting a stream elsewhere changes no score.
    """
    input_ids, cache = input_ids.to(model.device), None
    for inputs in input_ids[:, :start].split(READING_CALL, dim=1) if start else ():
        cache = model(inputs, **{CACHE: cache}, use_cache=True, logits_to_keep=1)[CACHE]
    for begin in range(start, input_ids.shape[1] - 1, chunk_size):
        labels = input_ids[0, begin + 1 : begin + 1 + chunk_size]
        inputs = input_ids[:, begin : begin + len(labels)]
        began = perf_counter()
        outputs = model(inputs, **{CACHE: cache}, use_cache=True)
        cache = outputs[CACHE]
        nlls = _nlls(outputs.logits[0], labels)
        del outputs  # its logits would otherwise live through the next call
        yield ScoredCall(nlls, (perf_counter() - began) / len(nlls), cache)


@torch.inference_mode()
def recomputed_scores(
    model, input_ids: torch.Tensor, window_size: int, chunk_size: int, start: int = 0
) -> Iterator[ScoredCall]:
    """Score every token after reading the `window_size` tokens before its predecessor, and that one, from scratch.

    The paper's baseline: sliding window with recomputation. `chunk_size` windows are read at once, as a batch.
    """
    input_ids = input_ids.to(model.device)
    position, last = start, input_ids.shape[1] - 1  # the newest input token of the next window
    while position < last:
        # Windows at the start of the text are shorter: those are read one by one.
        rows = min(chunk_size, last - position) if position >= window_size else 1
        begin = max(0, position - window_size)
        windows = input_ids[0, begin : position + rows].unfold(0, position + 1 - begin, 1)
        began = perf_counter()
        logits = model(windows, use_cache=False, logits_to_keep=1).logits[:, -1]
        nlls = _nlls(logits, input_ids[0, position + 1 : position + 1 + rows])
        yield ScoredCall(nlls, (perf_counter() - began) / rows, None)
        position += rows


def _nlls(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Scores of `labels` [tokens] under `logits` [tokens, vocabulary]; the list waits for the GPU."""
    return cross_entropy(logits.float(), labels.to(logits.device), reduction="none").tolist()
