"""Which new columns are tokens of their streams, by the attention mask; and whether position ids agree."""

from __future__ import annotations

import torch

from ..cache.cache import AttentionSinkKVCache


def real_columns(
    mask: torch.Tensor | None, batch_size: int, columns: int, cache: AttentionSinkKVCache | None
) -> torch.Tensor | None:
    """[batch, columns] bool on the CPU: which of the new columns belong to their row's stream; None when all do.

    Parameters
    ----------
    mask : torch.Tensor or None
        [batch, new columns] or [batch, all columns so far and new]; zeros mean "not part of this row's stream". Past
        columns must agree with what the cache recorded.

    Raises
    ------
    ValueError
        For a mask of another shape or one that contradicts the cache.
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
    if mask.shape[1] > columns:
        _check_past(mask[:, :past], cache)
    real = mask[:, -columns:]
    return None if bool(real.all()) else real


def _check_past(past: torch.Tensor, cache: AttentionSinkKVCache) -> None:
    """The past columns of a full mask must count as many tokens per row as the cache has seen."""
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
    """Positions are counted by the cache: accept those that say the same, by tokens or by columns, refuse others.

    Raises
    ------
    ValueError
        For positions that do not count up by one per token of a row from where the row stands, as packed sequences do.
    """
    if position_ids is None:
        return
    if position_ids.shape not in ((batch_size, columns), (1, columns)):
        raise ValueError(
            f"position_ids has the shape {tuple(position_ids.shape)}; leave it out, positions are counted by the cache."
        )
    given = position_ids.to("cpu").expand(batch_size, -1)
    real = torch.ones(batch_size, columns, dtype=torch.bool) if real is None else real
    past = cache.get_seq_length() if cache is not None else 0
    seen = torch.tensor(cache.streams.seen if past else (0,) * batch_size)[:, None]
    by_token = seen + real.long().cumsum(1) - 1
    by_column = past + torch.arange(columns).expand(batch_size, -1)
    for expected in (by_token, by_column):
        if torch.equal(given[real], expected[real]):
            return
    raise ValueError(
        f"position_ids={_shortened(given)} do not continue the streams (packed sequences and custom positions are not "
        "supported); leave position_ids out, positions are counted by the cache."
    )


def _shortened(values: torch.Tensor) -> str:
    return str([row[:8].tolist() for row in values[:2]])
