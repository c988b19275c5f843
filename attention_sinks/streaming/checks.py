"""These checks refuse a call, with the reason and the cure, before anything is touched. One of them reads its mask."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache
from ..plan.table import LayerTable


def refuse_tokens(ids: Any, embeds: Any) -> NoReturn:
    """Raise ValueError, since the tokens of a call came twice, not at all, or in a wrong shape."""
    if (ids is None) == (embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
    states, name = (ids, "input_ids") if embeds is None else (embeds, "inputs_embeds")
    raise ValueError(
        f"{name} has the shape {tuple(states.shape)}; it must be [batch, columns] with at least one of each"
        + ("." if embeds is None else " and hidden_size.")
    )


def check_kind_of_cache(cache: Any) -> None:
    """Refuse every cache but an `AttentionSinkKVCache`."""
    if not isinstance(cache, AttentionSinkKVCache):
        raise TypeError(
            f"cache is a {type(cache).__name__}, but a model with attention sinks streams through an "
            "AttentionSinkKVCache; make one with AttentionSinkKVCache(model) or leave it out (PEFT's prefix tuning "
            "brings its own and cannot stream)."
        )


def check_cache(cache: Any, setup: Setup, batch_size: int) -> None:
    """Refuse a cache that does not fit the model as it runs now, or the batch size of the call.

    What somebody has changed in the model since it was last looked at is noticed here; `check_facts` judges it.
    """
    check_kind_of_cache(cache)
    if not cache.was_made_for(setup.model):
        raise ValueError("cache was made for another model; make one with AttentionSinkKVCache(model) for this model.")
    setup.notice_changes()
    if len(cache.layers) != len(setup.kinds):
        raise ValueError(
            f"cache was made for another number of layers, {len(cache.layers)}, than the model runs now, "
            f"{len(setup.kinds)}; make a new AttentionSinkKVCache(model)."
        )
    if cache.settings.prefill != setup.settings.prefill:
        raise ValueError(
            f"cache was made with attention_sink_prefill={cache.settings.prefill!r}, but the model now has "
            f"{setup.settings.prefill!r}; make a new AttentionSinkKVCache(model)."
        )
    if cache.streams.seen and len(cache.streams.seen) != batch_size:
        raise ValueError(
            f"the call has batch size {batch_size}, but cache holds {len(cache.streams.seen)} rows; use the "
            "same batch size, batch_select_indices / batch_repeat_interleave, or reset() the cache."
        )


def check_facts(cache: AttentionSinkKVCache, setup: Setup, table: LayerTable) -> None:
    """Refuse a cache whose layers or keys were made when the model had other facts than `table` has now."""
    made, now = ([line[:2] for line in facts] for facts in (cache.facts, table.facts))
    if made != now or setup.fit(cache.settings) != cache.settings:
        raise ValueError(
            "cache was made for a model whose layers see or rotate other tokens than they do now, because its config "
            "(sliding_window, layer_types …) has been changed since; make a new AttentionSinkKVCache(model)."
        )
    if cache.facts != table.facts and cache.streams.seen:
        model, cast = setup.model, f"cast from {cache.dtype} to {setup.model.dtype}, which rounds its frequencies"
        raise ValueError(
            "cache holds keys at other positions than those that the model gives now: since the stream began, the "
            f"model was {cast if cache.dtype != model.dtype else 'given another rotary module, frequencies or config'}"
            "; reset() the cache, or make a new AttentionSinkKVCache(model), and feed the text again."
        )
    cache.facts = table.facts


def check_checkpointing(model: nn.Module) -> None:
    """Refuse a cache while `model` trains with gradient checkpointing."""
    if trains_with_checkpointing(model):
        raise ValueError(
            "cache cannot be used while gradient checkpointing is on in training; leave it out or call "
            "model.eval() or model.gradient_checkpointing_disable()."
        )


def trains_with_checkpointing(model: nn.Module) -> bool:
    """Return whether `model` trains and gradient checkpointing is on in any of its modules."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def check_attentions(columns: int, visible_size: int) -> None:
    """Refuse to return the weights of a call whose queries do not see the same keys."""
    if columns > visible_size:
        raise ValueError(
            f"output_attentions=True with a call of {columns} tokens: the weights of a call longer than sinks + window "
            f"+ 1 = {visible_size} have no common columns; cut the call into shorter ones."
        )


def check_dense(setup: Setup, cache: AttentionSinkKVCache | None, new: torch.Tensor | int) -> None:
    """Refuse a dense call of `new` tokens, [batch] or one number, that lets a query see more than the model can.

    The tokens of a dense call see all that is cached and each other, however small the window.
    """
    limit = setup.architecture.limit(setup.model.config)
    cached = cache.tokens_cached if cache is not None and cache.streams.seen else 0
    sees = int(torch.as_tensor(cached + new, dtype=torch.long, device="cpu").max())
    if limit is not None and sees > limit.tokens:
        raise ValueError(
            f"attention_sink_prefill='dense' lets the tokens of this call see {sees} tokens, but "
            f"{setup.model.config.model_type} can have at most {limit.tokens}: {limit.reason}; make shorter calls "
            "or use attention_sink_prefill='streaming'."
        )


def check_padding_of_states(
    real: torch.Tensor | None, order: torch.Tensor | None, cache: AttentionSinkKVCache | None
) -> None:
    """Refuse padding after the first token of a row: Transformers' states advance on it too.

    `real` and `order` are those of `inputs.Inputs`.
    """
    if real is None or (order is None and (cache is None or cache.streams.counters is None)):
        return
    raise ValueError(
        "attention_mask has zeros after the first token of a row, but this model has linear attention or state space "
        "layers, whose states cannot leave them out; pad on the left, in the first call only."
    )


def check_single_tokens(setup: Setup, with_gradients: bool) -> None:
    """Refuse a dense call, or one with gradients, that would have to be cut into single tokens."""
    if with_gradients or setup.settings.prefill == "dense":
        raise NotImplementedError(
            f"the states of {type(setup.model).__name__} start anew in every call of several tokens, in "
            "Transformers itself: with gradients or attention_sink_prefill='dense', pass one token at a time after the "
            "first call."
        )


def real_columns(
    mask: torch.Tensor | None, batch_size: int, columns: int, cache: AttentionSinkKVCache | None
) -> torch.Tensor | None:
    """Return which of the new columns belong to their row's stream.

    Parameters
    ----------
    mask : torch.Tensor or None
        [batch, new columns] or [batch, all columns so far and new]. A zero means "not part of this row's stream". The
        columns so far must agree with what the cache recorded.
    batch_size, columns : int
        How many rows and how many new columns the call has.
    cache : AttentionSinkKVCache or None
        The cache of the call.

    Returns
    -------
    torch.Tensor or None
        [batch, columns] bool on the CPU; None when all columns belong to streams.

    Raises
    ------
    ValueError
        For a mask of another shape, or one that contradicts the cache.
    """
    if mask is None:
        return None
    past = cache.get_seq_length() if cache is not None else 0
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask is {shape}; pass a 2D mask [batch, columns] that says which columns are tokens (who sees "
            "whom follows from the stream)."
        )
    if mask.shape[0] != batch_size or mask.shape[1] not in (columns, past + columns):
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}; it must be ({batch_size}, {columns}) for new columns"
            + (f" or ({batch_size}, {past + columns}) for all columns." if past else ".")
        )
    mask = (mask != 0).to("cpu")
    if cache is not None and mask.shape[1] > columns:
        _check_past(mask[:, :past], cache)
    real = mask[:, -columns:]
    return None if bool(real.all()) else real


def _check_past(past: torch.Tensor, cache: AttentionSinkKVCache) -> None:
    """Refuse a full mask whose past columns do not count as many tokens per row as the cache has seen."""
    claimed, seen = past.sum(1).tolist(), list(cache.streams.seen)
    if claimed != seen:
        raise ValueError(
            f"attention_mask marks {claimed} tokens in the columns already fed, but cache has seen {seen}; "
            "mark padding (and what follows the end of a row) with 0, or pass a mask of the new columns alone."
        )


def check_position_ids(
    position_ids: torch.Tensor | None,
    real: torch.Tensor | None,
    batch_size: int,
    columns: int,
    cache: AttentionSinkKVCache | None,
) -> None:
    """Refuse positions that differ from those that the cache counts, by tokens or by columns.

    Raises
    ------
    ValueError
        For positions that do not count up by one per token of a row from where the row stands. Packed sequences have
        such positions.
    """
    if position_ids is None:
        return
    if position_ids.shape not in ((batch_size, columns), (1, columns)):
        raise ValueError(
            f"position_ids has the shape {tuple(position_ids.shape)}; leave it out, positions are counted by the cache."
        )
    given = position_ids.to("cpu").expand(batch_size, -1)
    real = torch.ones(batch_size, columns, dtype=torch.bool, device="cpu") if real is None else real
    past = cache.get_seq_length() if cache is not None else 0
    seen = cache.streams.seen if cache is not None and past else (0,) * batch_size
    fed = torch.tensor(seen, dtype=torch.long, device="cpu")[:, None]
    by_token = fed + real.long().cumsum(1) - 1
    by_column = past + torch.arange(columns, dtype=torch.long, device="cpu").expand(batch_size, -1)
    for expected in (by_token, by_column):
        if torch.equal(given[real], expected[real]):
            return
    raise ValueError(
        f"position_ids={_shortened(given)} do not continue the streams (packed sequences and custom positions are not "
        "supported); leave position_ids out, positions are counted by the cache."
    )


def _shortened(values: torch.Tensor) -> str:
    """Return the first values of the first rows, for a message."""
    return str([row[:8].tolist() for row in values[:2]])
