"""For an injected model, `generate` has a cache and a mask of its own and watches rows that finish.

The functions replace methods of `GenerationMixin` on one model. Each calls the method of the model's plain class for
what is the same.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerationConfig, GenerationMixin, GenerationMode, MaxLengthCriteria

from ..architecture.modules import base_model_of
from ..architecture.setup import MARK, setup_of
from ..architecture.streaming_class import plain_class
from ..cache.cache import AttentionSinkKVCache
from ..streaming.checks import check_kind_of_cache, check_position_ids, real_columns
from ..versions import CACHE, OTHER_CACHE_NAME, peft_reads, with_both_names, with_cache_named
from .watchers import FinishedRows, RecordingUntilDone, WatchedCriteria

FINISHED = "_attention_sink_finished_rows"
"""The name under which a `FinishedRows` travels with the arguments of one run of `generate`."""

WATCHER = "_attention_sink_watcher"
"""The name under which the generation config of one run holds the watcher of its stopping criteria."""


def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Run `generate` with the cache by either name, in arguments and output."""
    plain, installed = plain_class(model), base_model_of(model).__dict__.get(MARK)
    if installed is None:  # attention sinks have gone out since the call began
        return plain.generate(model, *args, **kwargs)
    with installed.calls.one_more():
        return with_both_names(plain.generate(model, *args, **with_cache_named(kwargs)))


def prepare_cache(
    model: Any,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    generation_mode: GenerationMode,
    batch_size: int,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Make the sink cache, drop position ids, which would grow with the stream, and watch rows that finish."""
    _check_prompt_learning(model)
    given = model_kwargs.get(CACHE)
    rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
    _check(generation_config, given, model_kwargs.get("attention_mask"), rows)
    if given is None and generation_config.use_cache is not False:
        model_kwargs[CACHE] = AttentionSinkKVCache(model)
    model._plain_class._prepare_cache_for_generation(
        model, generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
    )
    cache = model_kwargs.get(CACHE)
    if not isinstance(cache, AttentionSinkKVCache):
        return
    if (position_ids := model_kwargs.pop("position_ids", None)) is not None:
        rows, columns = position_ids.shape[-2:]
        mask = model_kwargs.get("attention_mask")
        real = real_columns(mask, rows, columns, None) if mask is not None and mask.shape[1] == columns else None
        planes = position_ids[None] if position_ids.dim() == 2 else position_ids
        for plane in planes:  # there are several where text and images have positions of their own
            check_position_ids(plane, real, rows, columns, None)
    rows_may_end = generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
    if rows_may_end and not setup_of(model).has_states:  # states would take in what follows the end of a row anyway
        model_kwargs[FINISHED] = FinishedRows()
        setattr(generation_config, WATCHER, model_kwargs[FINISHED])
    if generation_config.is_assistant:
        cache.activate_past_recording()  # an assistant drafts over several runs, and is rolled back between them
    elif generation_mode == GenerationMode.ASSISTED_GENERATION and not cache.is_recording:
        cache.activate_past_recording()
        setattr(generation_config, WATCHER, RecordingUntilDone(cache))


def prepare_mask(
    model: Any,
    inputs_tensor: torch.Tensor,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Return the mask when none is given.

    When the cache holds tokens, ids that have no more columns than it has seen are new tokens.
    """
    mask: torch.Tensor = model._plain_class._prepare_attention_mask_for_generation(
        model, inputs_tensor, generation_config, model_kwargs, *args, **kwargs
    )
    cache = model_kwargs.get(CACHE)
    if not isinstance(cache, AttentionSinkKVCache) or generation_config.is_assistant:
        return mask  # an assistant is given the full history
    past = cache.get_seq_length()
    if not past:
        return mask
    if mask.shape[1] > past:
        raise ValueError(
            f"input_ids has {mask.shape[1]} columns and cache has seen {past}: without attention_mask it is "
            f"open whether these are new tokens or the full history; pass a mask of {past + mask.shape[1]} columns for "
            f"new tokens or of {mask.shape[1]} columns for the full history."
        )
    repeats = max(1, cache.batch_size // mask.shape[0])  # the cache may hold each row several times, for beams
    seen = cache.tokens_seen.to(mask.device)[::repeats, None]
    if len(seen) != len(mask):
        return mask  # `prepare_cache` will refuse it, when it is known how many rows generate feeds
    before = torch.arange(past, dtype=torch.long, device=mask.device) >= past - seen
    return torch.cat([before.to(mask.dtype), mask], dim=1)


def prepare_inputs(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the inputs of the next call. Its mask says that columns of finished rows are part of no stream."""
    kwargs = with_cache_named(kwargs) if OTHER_CACHE_NAME in kwargs else kwargs
    finished: FinishedRows | None = kwargs.pop(FINISHED, None)
    length = kwargs.get("next_sequence_length")
    if length == 0 and input_ids.shape[1]:
        raise ValueError(
            f"input_ids holds as many columns ({input_ids.shape[1]}) as cache has seen, and so does "
            "attention_mask: pass at least one new token, or new tokens with a mask of all columns or without one."
        )
    if length is not None and length <= 0:  # the ids are no longer than the cache, so all of them are new
        kwargs["next_sequence_length"] = None
    inputs: dict[str, Any] = model._plain_class.prepare_inputs_for_generation(model, input_ids, *args, **kwargs)
    cache = kwargs.get(CACHE)
    if isinstance(cache, AttentionSinkKVCache) and inputs.get(CACHE) is not cache:
        # Phi-3 drops its cache where plain Transformers would change frequencies; ours never do.
        mixin: Any = GenerationMixin  # its methods are typed for classes that inherit more than it
        inputs = mixin.prepare_inputs_for_generation(model, input_ids, *args, **kwargs)
    if finished is not None and inputs.get("input_ids") is not None:
        mask = finished.mask(inputs["input_ids"].shape[1])
        if mask is not None:
            inputs["attention_mask"] = mask
    peft_model = _prompt_learner(model) if "prepare_inputs_for_generation" in model.__dict__ else None
    if peft_model is not None and CACHE in inputs:  # it looks for the cache to know whether its prompt has been fed
        inputs[peft_reads(type(peft_model).prepare_inputs_for_generation)] = inputs.pop(CACHE)
    return inputs


def update_arguments(model: Any, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Return the arguments after a call. The cache knows all columns so far, so the next call needs no mask of them."""
    model_kwargs = with_cache_named(model_kwargs) if OTHER_CACHE_NAME in model_kwargs else model_kwargs
    if "attention_mask" in model_kwargs and isinstance(model_kwargs.get(CACHE), AttentionSinkKVCache):
        model_kwargs = {name: value for name, value in model_kwargs.items() if name != "attention_mask"}
    return model._plain_class._update_model_kwargs_for_generation(model, outputs, model_kwargs, *args, **kwargs)


def hand_mask_through(model: PreTrainedModel, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
    """Return the mask as it is. Transformers would make ready masks for a cache whose steps can be compiled."""
    return attention_mask


def stopping_criteria(
    model: Any, generation_config: GenerationConfig, *args: Any, **kwargs: Any
) -> StoppingCriteriaList:
    """Return the criteria of a run, which report to its watcher and do not warn beyond the trained length."""
    criteria: StoppingCriteriaList = model._plain_class._get_stopping_criteria(
        model, generation_config, *args, **kwargs
    )
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            criterion.max_position_embeddings = None
    watcher = generation_config.__dict__.pop(WATCHER, None)
    return criteria if watcher is None else WatchedCriteria(criteria, watcher)


def refuse_continuous_batching(model: PreTrainedModel, *args: Any, **kwargs: Any) -> NoReturn:
    """Raise NotImplementedError: the paged cache and attention of continuous batching would leave out the sinks."""
    raise NotImplementedError(
        "generate_batch and continuous batching keep a cache of their own and cannot stream; use generate with a left-"
        "padded batch, or remove_attention_sinks(model) first."
    )


def _check(generation_config: GenerationConfig, cache: Any, mask: torch.Tensor | None, rows: int) -> None:
    """Refuse what cannot work with a batch of `rows` rows, before anything is fed."""
    if generation_config.cache_implementation is not None:
        raise ValueError(
            f"cache_implementation={generation_config.cache_implementation!r} cannot be used with attention sinks; "
            "leave it out, or remove_attention_sinks(model) first."
        )
    if cache is not None:
        check_kind_of_cache(cache)
    if cache is not None and generation_config.use_cache is False:
        raise ValueError("use_cache=False with cache: generate would feed the stream twice; leave one out.")
    if isinstance(cache, AttentionSinkKVCache) and cache.batch_size not in (-1, rows):
        raise ValueError(
            f"cache holds {cache.batch_size} rows, but generate feeds {rows} (prompts times num_beams="
            f"{generation_config.num_beams} or num_return_sequences={generation_config.num_return_sequences}); use "
            "cache.batch_repeat_interleave(n) or a cache of its own for every call."
        )
    if mask is not None and mask.dim() == 2 and not bool(mask[:, -1:].all()):
        padded = (mask[:, -1] == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"attention_mask ends with padding in rows {padded}: what follows a prompt must follow its last token; "
            "pad on the left (tokenizer.padding_side = 'left'), and give every row at least one token."
        )


def _peft_model(model: PreTrainedModel) -> Any:
    """Return the PEFT model around `model` while that generates, else None.

    By then a method of the PEFT model stands in the place of ours, and calls it.
    """
    peft_model = getattr(model.prepare_inputs_for_generation, "__self__", None)
    return peft_model if hasattr(peft_model, "active_peft_config") else None


def _prompt_learner(model: PreTrainedModel) -> Any:
    """Return the PEFT model around `model` where it puts a prompt of its own before the tokens, else None."""
    peft_model = _peft_model(model)
    return peft_model if peft_model is not None and peft_model.active_peft_config.is_prompt_learning else None


def _check_prompt_learning(model: PreTrainedModel) -> None:
    """Refuse prompt learning of PEFT that cannot stream, or that was set up before attention sinks were injected.

    It puts methods of its own before ours while it generates.
    """
    method, peft_model = model.prepare_inputs_for_generation, _peft_model(model)
    if peft_model is not None:
        peft_config = peft_model.active_peft_config
        if "PREFIX" in str(peft_config.peft_type) or "CARTRIDGE" in str(peft_config.peft_type):
            raise NotImplementedError(
                f"peft_type={peft_config.peft_type} brings keys and values in a cache of its own and cannot stream; "
                "use another kind of adapter (LoRA, prompt tuning), or remove_attention_sinks(model) first."
            )
        method = peft_model.base_model_prepare_inputs_for_generation
    if getattr(method, "__func__", None) is not type(model).__dict__.get("prepare_inputs_for_generation"):
        raise NotImplementedError(
            "prepare_inputs_for_generation of the model has been replaced since attention sinks were injected (PEFT's "
            "prompt learning does so): call inject_attention_sinks(model) before get_peft_model."
        )


OVERRIDES = {
    "generate": generate,
    "_prepare_cache_for_generation": prepare_cache,
    "_prepare_attention_mask_for_generation": prepare_mask,
    "prepare_inputs_for_generation": prepare_inputs,
    "create_masks_for_generate": hand_mask_through,
    "_update_model_kwargs_for_generation": update_arguments,
    "_get_stopping_criteria": stopping_criteria,
    "generate_batch": refuse_continuous_batching,
    "init_continuous_batching": refuse_continuous_batching,
}
"""The name of a method of `GenerationMixin` -> the function that replaces it on an injected model."""
