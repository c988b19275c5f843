"""Padding is moved to the left of the new tokens before a call, and the output is moved back after it."""

from __future__ import annotations

import torch


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
