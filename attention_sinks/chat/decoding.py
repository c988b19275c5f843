"""The decoding loop of `generate`, of which the caller makes each step, when and where it likes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation import GenerationMode

ANSWER_LENGTH = 1024
"""The most new tokens of an answer when the generation config sets no limit."""

Step = tuple[list[int | None], list[str | None]]
"""For each row, the token that was said and why the answer has ended, "stop" or "length"; None while it goes on. The
token is None when it only ends the answer, and after the end."""


@dataclass(frozen=True)
class Choosing:
    """How the tokens of an answer are chosen, and where it ends.

    Attributes
    ----------
    config : GenerationConfig
        Greedily or by sampling, with which limits. Values that it leaves open come from the model's own.
    processors : list of LogitsProcessor
        They change the logits beside those that the config asks for.
    criteria : list of StoppingCriteria
        They end the answer beside those that the config asks for.
    generator : torch.Generator, optional
        Where samples come from. The default is the generator of the device.
    """

    config: GenerationConfig
    processors: Sequence[LogitsProcessor] = ()
    criteria: Sequence[StoppingCriteria] = ()
    generator: torch.Generator | None = None


class Decoder:
    """The decoding loop of `generate`, turned inside out: it says what to feed and chooses from the logits of that.

    Parameters
    ----------
    model : PreTrainedModel
        The model, which it does not call.
    input_ids : tensor
        [batch, n] int64, the new tokens of each row, padded on the left.
    logits_processor, stopping_criteria, generation_config
        What `generate` has prepared.
    mask : tensor
        [batch, n] int64, 1 for a token.
    generator : torch.Generator, optional
        Where samples come from.

    Attributes
    ----------
    columns : tensor
        [batch, n] int64, what is to be fed: first the new tokens, then those that were said last.
    arguments : dict
        Further arguments of that call.
    begun : bool
        Whether a token has been chosen.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        *,
        mask: torch.Tensor,
        generator: torch.Generator | None,
        **model_kwargs: Any,
    ) -> None:
        end = generation_config.eos_token_id
        self._ends = set(end if isinstance(end, list) else [end])
        self._processor, self._config, self._generator = logits_processor, generation_config, generator
        self._limits, self._others = _by_kind(stopping_criteria)
        self._ids, self._mask = input_ids, mask
        self._going = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        self._reasons: list[str | None] = [None] * len(input_ids)
        self.columns, self.begun = input_ids, False
        self.arguments = {name: value for name, value in model_kwargs.items() if name == "logits_to_keep"}

    @property
    def mask(self) -> torch.Tensor | None:
        """[batch, n] int64, which of the columns are tokens; None where all are. Finished rows are masked."""
        return None if bool(self._mask.all()) else self._mask

    @property
    def is_done(self) -> bool:
        """Whether all answers have ended. The last token of an answer is not fed."""
        return not any(reason is None for reason in self._reasons)

    @torch.no_grad()
    def choose(self, logits: torch.Tensor) -> Step:
        """Choose the next token of each row from the logits [batch, n, words] of what was fed.

        When a processor or a criterion raises, nothing has been chosen.
        """
        scores = self._processor(self._ids, logits[:, -1].to(self._ids.device, torch.float32, copy=True))
        going, config = self._going, self._config
        chosen = _choose(scores, config.do_sample, self._generator).masked_fill(~going, config.pad_token_id)
        ids = torch.cat([self._ids, chosen[:, None]], dim=1)
        limits, others = (_fired(criteria, ids, scores) for criteria in (self._limits, self._others))
        reasons = [
            reason or ("stop" if stops else "length" if full else None)
            for reason, stops, full in zip(self._reasons, others.tolist(), limits.tolist(), strict=True)
        ]
        said = [
            token if on and token not in self._ends else None
            for token, on in zip(chosen.tolist(), going.tolist(), strict=True)
        ]
        self._ids, self.columns, self._going = ids, chosen[:, None], going & ~(limits | others)
        self._mask, self._reasons, self.begun = self._going[:, None].long(), reasons, True
        return said, reasons


def decoder_of(model: Any, tokenizer: Any, prompts: list[list[int]], choosing: Choosing) -> Decoder:
    """Return what answers `prompts` as `generate` would, greedily or by sampling.

    `generate` itself prepares the logits processors and the stopping criteria.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        The model whose `generate` prepares them, and its tokenizer.
    prompts : list of list of int
        New tokens of each row.
    choosing : Choosing
        How tokens are chosen.

    Raises
    ------
    ValueError
        When the config asks for beams, several sequences or an assistant.
    """
    config = _prepared(choosing.config, model.generation_config, tokenizer)
    _check_mode(config)
    _limit(config, model.generation_config, prompt_length=max(map(len, prompts)))
    ids, mask = left_padded(prompts, device_of(model))
    # This function makes the criterion, because `generate` does not pass the tokenizer to a custom loop.
    stop_strings, config.stop_strings = config.stop_strings, None
    criteria = [StopStringCriteria(tokenizer, stop_strings)] if stop_strings else []
    decoder: Decoder = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList(choosing.processors),
        stopping_criteria=StoppingCriteriaList([*criteria, *choosing.criteria]),
        custom_generate=partial(Decoder, mask=mask, generator=choosing.generator),
        **({"stop_strings": None} if model.generation_config.stop_strings else {}),
    )
    return decoder


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


def _choose(scores: torch.Tensor, do_sample: bool | None, generator: torch.Generator | None) -> torch.Tensor:
    """Choose the next token of each row, [batch] int64, from `scores` [batch, words]."""
    if do_sample:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=generator)[:, 0]
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
