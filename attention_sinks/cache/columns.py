"""Reading and writing columns and rows of keys and values, and rotating columns."""

from __future__ import annotations

import torch

from ..positions.rotary import Rotary
from ..positions.schemes import Position

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, both [batch, num_key_value_heads, n, head_dim]."""


def take(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the columns `index` [R, m] of `states` [batch, heads, n, d]."""
    if index.shape[0] == 1:
        return states.index_select(2, index[0])
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))


def put(buffer: torch.Tensor, new: torch.Tensor, slots: torch.Tensor, active: torch.Tensor | None) -> None:
    """Write the columns of `new` [batch, heads, n, d] into the slots [R, n] of each row.

    Rows that are not in `active` [batch] bool keep what their slots hold. None stands for all rows.
    """
    new = new.transpose(1, 2)
    rows = torch.arange(new.shape[0], dtype=torch.long, device=new.device)[:, None]
    if active is not None:
        new = torch.where(active[:, None, None, None], new, buffer[rows, :, slots])
    buffer[rows, :, slots] = new


def picked(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return a copy of the rows at `rows` [n] of `states` [batch, …]."""
    return states.index_select(0, rows.to(states.device))


def write_rows(states: torch.Tensor, rows: torch.Tensor, copies: torch.Tensor | int) -> None:
    """Write `copies` [n, …], or one number, over the rows at `rows` [n] of `states` [batch, …]."""
    rows = rows.to(states.device)
    if isinstance(copies, torch.Tensor):
        states.index_copy_(0, rows, copies.to(states.device))
    else:
        states.index_fill_(0, rows, copies)


def rotated(states: torch.Tensor, position: Position, shift: torch.Tensor) -> torch.Tensor:
    """Return `states` [batch, heads, n, head_dim] rotated by `shift` [R, 1]."""
    assert isinstance(position, Rotary)  # other positions rotate nothing
    return position.pairing.rotate(states, position.tables(shift, states.dtype))
