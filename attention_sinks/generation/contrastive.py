"""Contrastive search over a sink cache: a decoding loop for `generate` chooses likely tokens that do not repeat."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ..cache.cache import AttentionSinkKVCache
from ..versions import CACHE


def contrastive_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> GenerateDecoderOnlyOutput | torch.Tensor:
    """Choose tokens by contrastive search (Su et al. 2022, arXiv 2202.06417, equation 5).

    Give this function to `generate`, which runs it as its decoding loop:
    `model.generate(..., penalty_alpha=0.6, top_k=4, custom_generate=contrastive_search)`.

    Among the `top_k` likeliest tokens v it chooses the one with the highest

        (1 - penalty_alpha) p(v) - penalty_alpha max_j cos(h_v, h_j)

    where h are last hidden states and j runs over the S+W+1 most recent tokens that this run has fed, so that the cost
    per token is constant.

    Returns
    -------
    torch.Tensor or GenerateDecoderOnlyOutput
        Sequences [batch, columns]. The returned cache holds all their tokens, including the last one.

    Raises
    ------
    ValueError
        When `penalty_alpha` or `top_k` is not given, or the cache is not a sink cache.
    """
    alpha, top_k, cache = generation_config.penalty_alpha, generation_config.top_k, model_kwargs.get(CACHE)
    if alpha is None or not top_k:
        raise ValueError(f"penalty_alpha={alpha} and top_k={top_k}: give both, as in penalty_alpha=0.6, top_k=4.")
    if not isinstance(cache, AttentionSinkKVCache):
        raise ValueError(f"cache is a {type(cache).__name__}; call inject_attention_sinks(model) first.")
    recent = slice(-cache.settings.visible_size, None)
    outputs = model._prefill(input_ids, generation_config, {**model_kwargs, "output_hidden_states": True})
    logits, context = outputs.logits[:, -1], normalize(outputs.hidden_states[-1][:, recent].float(), dim=-1)
    said = _tokens(model_kwargs.get("attention_mask"), context)
    finished = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    first_row = torch.arange(input_ids.shape[0], dtype=torch.long, device=input_ids.device) * top_k
    scores: tuple[torch.Tensor, ...] = ()
    padding: torch.Tensor | None = generation_config._pad_token_tensor  # None without a token to pad and to end with
    while not finished.all():
        scores += (logits_processor(input_ids, logits.float()),)
        likely, candidates = scores[-1].softmax(dim=-1).topk(top_k)
        cache.batch_repeat_interleave(top_k)
        outputs = model(
            input_ids=candidates.view(-1, 1),
            attention_mask=(~finished).long().repeat_interleave(top_k)[:, None],
            cache=cache,
            output_hidden_states=True,
            return_dict=True,
        )
        hidden = normalize(outputs.hidden_states[-1].float(), dim=-1).view(*candidates.shape, -1)
        similarity = (hidden @ context.transpose(1, 2)).masked_fill(~said[:, None], -1.0).amax(dim=-1)
        best = ((1 - alpha) * likely - alpha * similarity).argmax(dim=-1)
        rows = first_row + best
        cache.batch_select_indices(rows)
        logits = outputs.logits[rows, -1]
        context = torch.cat([context, hidden.flatten(0, 1)[rows, None]], dim=1)[:, recent]
        said = torch.cat([said, ~finished[:, None]], dim=1)[:, recent]
        token = candidates.gather(1, best[:, None])
        if padding is not None and bool(finished.any()):
            token = token.masked_fill(finished[:, None], padding)
        input_ids = torch.cat([input_ids, token], dim=1)
        finished = finished | stopping_criteria(input_ids, scores)
        if not generation_config.output_scores:
            scores = ()
    sequences: torch.Tensor = input_ids
    if not generation_config.return_dict_in_generate:
        return sequences
    output: dict[str, Any] = {"sequences": sequences, "scores": scores or None, CACHE: cache}
    return GenerateDecoderOnlyOutput(**output)


def _tokens(mask: torch.Tensor | None, context: torch.Tensor) -> torch.Tensor:
    """Return which of the last columns of the prompt are tokens, [batch, columns] bool."""
    if mask is None:
        return torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
    return mask[:, -context.shape[1] :] != 0
