"""The outputs of the chunks of a long call become one output."""

from __future__ import annotations

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..versions import CACHE


def joined(
    whole: BaseModelOutputWithPast | None, part: BaseModelOutputWithPast, chunk: slice, columns: int
) -> BaseModelOutputWithPast:
    """Write the output `part` of the columns `chunk` into that of the call, and return the latter.

    The first part makes room for the others.
    """
    if chunk == slice(0, columns):
        return part
    known = {"last_hidden_state", "hidden_states", CACHE}
    if unknown := {name for name, value in part.items() if value is not None} - known:
        size, names = chunk.stop - chunk.start, ", ".join(sorted(unknown))
        raise NotImplementedError(f"a call longer than {size} tokens cannot return {names}; make shorter calls.")
    new = _hidden_states(part)
    if whole is None:
        whole, (last, *others) = part, [_room(states, columns) for states in new]
        whole["last_hidden_state"] = last
        if others:
            whole["hidden_states"] = tuple(others)
    for room, states in zip(_hidden_states(whole), new, strict=True):
        if room is not None and states is not None:
            room[:, chunk] = states
    return whole


def _hidden_states(output: BaseModelOutputWithPast) -> list[torch.Tensor | None]:
    """Return everything in `output` that has columns; None for a layer whose states the caller has not chosen."""
    return [output["last_hidden_state"], *(output.get("hidden_states") or ())]


def _room(states: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """Return room for states like `states` [batch, n, hidden_size] with `columns` columns."""
    return None if states is None else states.new_empty(len(states), columns, states.shape[2])
