"""What `generate` does differently for an injected model: its cache, its mask, rows that have finished.

The functions replace methods of `GenerationMixin` on one model; each calls the class's own method for the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerationConfig, GenerationMode

from .cache import AttentionSinkKVCache
from .masks import check_position_ids, real_columns

FINISHED = "_attention_sink_finished_rows"
"""Under this name a `FinishedRows` travels with the configuration and the arguments of one `generate` call."""


class FinishedRows:
    """Which rows of one `generate` call have met a stopping criterion.

    Transformers goes on feeding a finished row until all rows are done; those columns are not part of its stream.
    """

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None

    def record(self, done: torch.Tensor) -> None:
        self.rows = done.bool() if self.rows is None else self.rows | done.bool()

    def mask(self, columns: int) -> torch.Tensor | None:
        """[batch, columns] int64, zeros in the rows that have finished; None while none has."""
        if self.rows is None or not bool(self.rows.any()):
            return None
        return (~self.rows).long()[:, None].expand(-1, columns)


class WatchedCriteria(StoppingCriteriaList):
    """Stopping criteria that also tell a `FinishedRows`."""

    def __init__(self, criteria: StoppingCriteriaList, finished: FinishedRows) -> None:
        super().__init__(criteria)
        self.finished = finished

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = super().__call__(input_ids, scores, **kwargs)
        self.finished.record(done)
        return done


def prepare_cache(
    model: PreTrainedModel, generation_config: GenerationConfig, model_kwargs: dict, generation_mode, *args, **kwargs
) -> None:
    """Make the sink cache, drop the position ids that would grow with the stream, watch rows that finish."""
    _refuse_unsupported(generation_config, generation_mode)
    if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
        model_kwargs["past_key_values"] = AttentionSinkKVCache(model)
    type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, generation_mode, *args, **kwargs)
    if not isinstance(model_kwargs.get("past_key_values"), AttentionSinkKVCache):
        return
    if (position_ids := model_kwargs.pop("position_ids", None)) is not None:
        rows, columns = position_ids.shape
        mask = model_kwargs.get("attention_mask")
        real = real_columns(mask, rows, columns, None) if mask is not None and mask.shape[1] == columns else None
        check_position_ids(position_ids, real, rows, columns, None)
    if generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        model_kwargs[FINISHED] = FinishedRows()
        setattr(generation_config, FINISHED, model_kwargs[FINISHED])


def prepare_mask(
    model: PreTrainedModel, inputs_tensor: torch.Tensor, generation_config: GenerationConfig, model_kwargs: dict
) -> torch.Tensor:
    """The mask when none is given: with a cache that holds tokens, ids no longer than it are new tokens."""
    mask = type(model)._prepare_attention_mask_for_generation(model, inputs_tensor, generation_config, model_kwargs)
    cache = model_kwargs.get("past_key_values")
    past = cache.get_seq_length() if isinstance(cache, AttentionSinkKVCache) else 0
    if not past:
        return mask
    if mask.shape[1] > past:
        raise ValueError(
            f"input_ids has {mask.shape[1]} columns and past_key_values has seen {past}: without attention_mask it is "
            f"open whether these are new tokens or the full history; pass a mask of {past + mask.shape[1]} columns for "
            f"new tokens or of {mask.shape[1]} columns for the full history."
        )
    seen = cache.tokens_seen.to(mask.device)[:, None]
    before = torch.arange(past, device=mask.device) >= past - seen
    return torch.cat([before.to(mask.dtype), mask], dim=1)


def prepare_inputs(model: PreTrainedModel, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The inputs of the next call; columns of finished rows are marked as not part of their streams."""
    finished: FinishedRows | None = kwargs.pop(FINISHED, None)
    length = kwargs.get("next_sequence_length")
    if length is not None and length <= 0:  # ids no longer than the cache: all of them are new
        kwargs["next_sequence_length"] = None
    inputs = type(model).prepare_inputs_for_generation(model, input_ids, *args, **kwargs)
    if finished is not None and inputs.get("input_ids") is not None:
        mask = finished.mask(inputs["input_ids"].shape[1])
        if mask is not None:
            inputs["attention_mask"] = mask
    return inputs


def update_arguments(model: PreTrainedModel, outputs: Any, model_kwargs: dict, *args: Any, **kwargs: Any) -> dict:
    """After a call all columns so far are in the cache: the next call needs no mask of them."""
    if isinstance(model_kwargs.get("past_key_values"), AttentionSinkKVCache):
        model_kwargs = {**model_kwargs, "attention_mask": None}
    return type(model)._update_model_kwargs_for_generation(model, outputs, model_kwargs, *args, **kwargs)


def stopping_criteria(model: PreTrainedModel, generation_config: GenerationConfig, *args: Any, **kwargs: Any):
    """The criteria of the call, watched when rows may finish one by one."""
    criteria = type(model)._get_stopping_criteria(model, generation_config, *args, **kwargs)
    finished = getattr(generation_config, FINISHED, None)
    return criteria if finished is None else WatchedCriteria(criteria, finished)


def refuse_continuous_batching(model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
    """Its paged cache and attention would pass the sinks by."""
    raise NotImplementedError(
        "generate_batch and continuous batching keep a cache of their own and cannot stream; use generate with a left-"
        "padded batch, or remove_attention_sinks(model) first."
    )


def _refuse_unsupported(generation_config: GenerationConfig, generation_mode: GenerationMode) -> None:
    if generation_config.cache_implementation is not None:
        raise ValueError(
            f"cache_implementation={generation_config.cache_implementation!r} cannot be used with attention sinks; "
            "leave it out, or remove_attention_sinks(model) first."
        )
    if generation_mode == GenerationMode.ASSISTED_GENERATION or getattr(generation_config, "is_assistant", False):
        raise NotImplementedError(
            "assisted decoding (assistant_model, prompt_lookup_num_tokens) rolls the cache back, which a full window "
            "does not allow yet; leave the assistant out."
        )


OVERRIDES = {
    "_prepare_cache_for_generation": prepare_cache,
    "_prepare_attention_mask_for_generation": prepare_mask,
    "prepare_inputs_for_generation": prepare_inputs,
    "_update_model_kwargs_for_generation": update_arguments,
    "_get_stopping_criteria": stopping_criteria,
    "generate_batch": refuse_continuous_batching,
    "init_continuous_batching": refuse_continuous_batching,
}
"""Method of `GenerationMixin` -> what replaces it on an injected model."""
