"""`generate` turned inside out: tokens are asked for one step at a time, in the caller's own thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerationMode

ANSWER_LENGTH = 1024
"""Most new tokens where the generation config sets no limit."""

Feed = Callable[..., torch.Tensor]
"""Calls the model: `input_ids`, `attention_mask` (None: all are tokens) and the like to logits [batch, n, words]."""

Said = tuple[list[int | None], list[bool]]
"""By row: the token said, None for one that only ends the answer and after its end; whether the answer has ended."""


def decode(
    model: Any, tokenizer: Any, prompts: list[list[int]], generation_config: GenerationConfig, feed: Feed
) -> Iterator[Said]:
    """Answer `prompts` as `generate` would, greedily or by sampling; it prepares processors and stopping criteria.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        Whose `generate` and whose words they are.
    prompts : list of list of int
        New tokens of each row.
    generation_config : GenerationConfig
        What it leaves open is as in the model's own.
    feed : callable
        Calls the model. Finished rows are masked and feed nothing; the last token of an answer is not fed.

    Raises
    ------
    ValueError
        For a config that asks for beams, several sequences or an assistant.
    """
    config = _prepared(generation_config, model.generation_config, tokenizer)
    _check_mode(config)
    _limit(config, model.generation_config, prompt_length=max(map(len, prompts)))
    device = "cpu" if model.device.type == "meta" else model.device  # weights on disk come in where the input is
    ids, mask = _left_padded(prompts, device)
    # The criterion is made here because `generate` keeps the tokenizer from a loop that is not its own.
    stop_strings, config.stop_strings = config.stop_strings, None
    criteria = [StopStringCriteria(tokenizer, stop_strings)] if stop_strings else []
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(criteria),
        custom_generate=partial(_steps, mask=mask, feed=feed),
        **({"stop_strings": None} if model.generation_config.stop_strings else {}),
    )


@torch.no_grad()
def _steps(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    *,
    mask: torch.Tensor,
    feed: Feed,
    **model_kwargs: Any,
) -> Iterator[Said]:
    """The decoding loop that `generate` runs with what it has prepared."""
    ends = generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    last_only = {"logits_to_keep": model_kwargs["logits_to_keep"]} if "logits_to_keep" in model_kwargs else {}
    columns, going = input_ids, torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    while bool(going.any()):
        logits = feed(input_ids=columns, attention_mask=None if bool(mask.all()) else mask, **last_only)[:, -1]
        scores = logits_processor(input_ids, logits.to(input_ids.device, torch.float32, copy=True))
        chosen = _choose(scores, generation_config.do_sample).masked_fill(~going, generation_config.pad_token_id)
        columns = chosen[:, None]
        input_ids = torch.cat([input_ids, columns], dim=1)
        said = [
            token if on and token not in ends else None
            for token, on in zip(chosen.tolist(), going.tolist(), strict=True)
        ]
        going = going & ~stopping_criteria(input_ids, scores)
        mask = going[:, None].long()
        yield said, (~going).tolist()


def _choose(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def _prepared(config: GenerationConfig, defaults: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """A copy with an end and a padding token, which `generate` would guess with a warning."""
    config = copy.deepcopy(config)
    config.update(**defaults.to_dict(), defaults_only=True)
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id or 0  # always masked
    config.use_cache = False  # `feed` has the cache
    return config


def _limit(config: GenerationConfig, defaults: GenerationConfig, prompt_length: int) -> None:
    """Let `max_length` count new tokens as well: a prompt is never too long for a stream.

    `generate` warns when both lengths are set, and takes from the model's own config what is not.
    """
    limit = config.max_new_tokens or config.max_length or ANSWER_LENGTH
    if defaults.max_length is None:
        config.max_new_tokens, config.max_length = limit, None
    else:
        config.max_new_tokens, config.max_length = defaults.max_new_tokens and limit, prompt_length + limit


def _check_mode(config: GenerationConfig) -> None:
    mode, count = config.get_generation_mode(), config.num_return_sequences or 1
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or count > 1:
        raise ValueError(
            f"generation_config asks for {mode.value} with num_return_sequences={count}, which has no text before the "
            "end or several; use greedy search or sampling (num_beams=1, do_sample=True or False, no assistant)."
        )


def _left_padded(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [batch, longest]; a row's own first token pads it: some versions penalise padding."""
    longest = max(map(len, prompts))
    ids = torch.tensor([row[:1] * (longest - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    return ids, mask
