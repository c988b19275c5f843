"""Padding is cleared and moved to the left of the new tokens before a call; the output is moved back after it."""

from __future__ import annotations

from typing import Any

import torch

EMBEDDINGS = ("inputs_embeds", "per_layer_inputs")
"""Arguments that are multiplied as they are. What stands at padding may be NaN, which no weight of zero takes away."""


def clear_padding(given: dict[str, Any], real: torch.Tensor) -> None:
    """Replace embeddings among the arguments `given` by ones with zeros where `real` [batch, columns] bool is False."""
    for name in EMBEDDINGS:
        if (states := given.get(name)) is not None:
            padding = ~real.to(states.device).view(*real.shape, *[1] * (states.dim() - 2))
            given[name] = states.masked_fill(padding, 0)


def padding_left(
    real: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None] | tuple[None, None]:
    """Return `real` [batch, columns] bool with padding moved to the left, and the order of columns that moves it.

    The order is on `device`, and None where padding stands on the left already. Without padding both are None.
    """
    if bool(real.all()):
        return None, None
    order = real.int().argsort(dim=1, stable=True)
    in_order = torch.arange(real.shape[1], dtype=torch.long, device="cpu").expand_as(order)
    return real.gather(1, order), None if torch.equal(order, in_order) else order.to(device)


def reordered(states: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return `states` [batch, columns, …] with columns in the order `order` [batch, columns]; None: as they are."""
    if order is None:
        return states
    index = order.to(states.device).view(*order.shape, *[1] * (states.dim() - 2))
    return states.gather(1, index.expand(*order.shape, *states.shape[2:]))
