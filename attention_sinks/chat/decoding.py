"""Run the decoding loop of `generate` as an iterator: the caller asks for one step at a time, in its own thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerationMode

ANSWER_LENGTH = 1024
"""The most new tokens of an answer when the generation config sets no limit."""

Feed = Callable[..., torch.Tensor]
"""A function that calls the model with `input_ids`, `attention_mask` and other keywords and returns logits
[batch, columns, words]. Without a mask, every column is a token."""

Step = tuple[list[int | None], list[str | None]]
"""For each row, the token that was said and why the answer has ended, "stop" or "length"; None while it goes on. The
token is None when it only ends the answer, and after the end."""


def decode(
    model: Any, tokenizer: Any, prompts: list[list[int]], generation_config: GenerationConfig, feed: Feed
) -> Iterator[Step]:
    """Answer `prompts` as `generate` would, greedily or by sampling.

    `generate` itself prepares the logits processors and the stopping criteria.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        The model whose `generate` runs the loop, and its tokenizer.
    prompts : list of list of int
        New tokens of each row.
    generation_config : GenerationConfig
        How tokens are chosen. Values that it leaves open come from the model's own generation config.
    feed : callable
        Calls the model. Finished rows are masked and feed nothing. The last token of an answer is not fed.

    Returns
    -------
    iterator of `Step`
        One item for each step.

    Raises
    ------
    ValueError
        When the config asks for beams, several sequences or an assistant.
    """
    config = _prepared(generation_config, model.generation_config, tokenizer)
    _check_mode(config)
    _limit(config, model.generation_config, prompt_length=max(map(len, prompts)))
    ids, mask = left_padded(prompts, device_of(model))
    # This function makes the criterion, because `generate` does not pass the tokenizer to a custom loop.
    stop_strings, config.stop_strings = config.stop_strings, None
    criteria = [StopStringCriteria(tokenizer, stop_strings)] if stop_strings else []
    steps: Iterator[Step] = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList(criteria),
        custom_generate=partial(_steps, mask=mask, feed=feed),
        **({"stop_strings": None} if model.generation_config.stop_strings else {}),
    )
    return steps


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
) -> Iterator[Step]:
    """Run the decoding loop; `generate` calls it with the processors and criteria that it has prepared."""
    end = generation_config.eos_token_id
    ends = set(end if isinstance(end, list) else [end])
    last_only = {"logits_to_keep": model_kwargs["logits_to_keep"]} if "logits_to_keep" in model_kwargs else {}
    columns = input_ids
    going = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)  # rows whose answer goes on
    reasons: list[str | None] = [None] * len(input_ids)
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
        limits, others = (_fired(criteria, input_ids, scores) for criteria in _by_kind(stopping_criteria))
        reasons = [
            reason or ("stop" if stops else "length" if full else None)
            for reason, stops, full in zip(reasons, others.tolist(), limits.tolist(), strict=True)
        ]
        going = going & ~(limits | others)
        mask = going[:, None].long()
        yield said, reasons


def _by_kind(criteria: Any) -> tuple[list[Any], list[Any]]:
    """Return the criteria that limit an answer, and those that see its end."""
    limits = [each for each in criteria if isinstance(each, (MaxLengthCriteria, MaxTimeCriteria))]
    return limits, [each for each in criteria if each not in limits]


def _fired(criteria: list[Any], input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return for which rows [batch] bool any of the criteria says that the answer has ended."""
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for each in criteria:
        ended = ended | each(input_ids, scores)
    return ended


def _choose(scores: torch.Tensor, do_sample: bool | None) -> torch.Tensor:
    """Choose the next token of each row, [batch] int64, from `scores` [batch, words]."""
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)[:, 0]
    return scores.argmax(dim=-1)


def _prepared(config: GenerationConfig, defaults: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """Copy `config` and set its end and padding tokens, which `generate` would guess with a warning."""
    config = with_defaults(config, defaults)
    config.eos_token_id = ends_of(config, tokenizer) or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id or 0  # padding is always masked
    config.use_cache = False  # `feed` keeps the cache
    return config


def with_defaults(config: GenerationConfig, defaults: GenerationConfig) -> GenerationConfig:
    """Return a copy of `config` in which values that it leaves open are those of `defaults`."""
    config = copy.deepcopy(config)
    config.update(**defaults.to_dict(), defaults_only=True)
    return config


def ends_of(config: GenerationConfig, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer: those of the config, and the tokenizer's.

    The configs of finetuned models and of GGUF files may name only another one.
    """
    named = config.eos_token_id
    ends = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return [end for index, end in enumerate(ends) if end is not None and end not in ends[:index]]


def _limit(config: GenerationConfig, defaults: GenerationConfig, prompt_length: int) -> None:
    """Limit only the new tokens, also where `config` sets `max_length`: a prompt is never too long for a stream.

    `generate` takes a length that `config` leaves open from `defaults`, and warns when `config` sets both lengths.
    """
    limit = config.max_new_tokens or config.max_length or ANSWER_LENGTH
    if defaults.max_length is None:
        config.max_new_tokens, config.max_length = limit, None
    else:
        config.max_new_tokens = None if defaults.max_new_tokens is None else limit
        config.max_length = prompt_length + limit


def _check_mode(config: GenerationConfig) -> None:
    """Raise ValueError when `config` asks for anything but one sequence by greedy search or sampling."""
    mode, count = config.get_generation_mode(), config.num_return_sequences or 1
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) or count > 1:
        raise ValueError(
            f"generation_config asks for {mode.value} with num_return_sequences={count}, which has no text before the "
            "end or several; use greedy search or sampling (num_beams=1, do_sample=True or False, no assistant)."
        )


def device_of(model: Any) -> Any:
    """Return the device of a model's inputs. Weights on disk are loaded to where the input is."""
    return "cpu" if model.device.type == "meta" else model.device


def left_padded(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, both [batch, longest].

    The first token of each row pads it, because some releases of Transformers penalise the tokens of the padding too.
    """
    longest = max(map(len, prompts))
    padded = [(row[:1] or [0]) * (longest - len(row)) + row for row in prompts]
    ids = torch.tensor(padded, dtype=torch.long, device=device).reshape(len(prompts), longest)
    mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in prompts], dtype=torch.long, device=device
    ).reshape(len(prompts), longest)
    return ids, mask
