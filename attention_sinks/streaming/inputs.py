"""What a call of the base model brings: read once, checked before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..architecture.layer_kinds import ATTENTION, LINEAR
from ..architecture.setup import Setup, named_arguments, setup_of
from ..cache.cache import AttentionSinkKVCache
from ..plan.counters import Counters
from ..settings import SinkSettings
from ..versions import CACHE
from .checks import check_attentions, check_cache, check_dense, check_padding_of_states, check_single_tokens
from .masks import check_position_ids, real_columns
from .multimodal import refuse_media, text_arguments


@dataclass(frozen=True)
class Inputs:
    """A checked call of the base model, ready to be cut into pieces."""

    setup: Setup
    given: dict[str, Any]
    """Arguments by name, without those the library answers for: mask, positions, cache."""
    batch_size: int
    columns: int
    device: torch.device
    cache: AttentionSinkKVCache | None
    """The cache to stream through; None for a call without a past that leaves nothing behind."""
    keep_cache: bool
    """Whether the cache is the caller's to keep."""
    real: torch.Tensor | None
    """[batch, columns] bool on the CPU, padding on the left; None: all columns are tokens of their streams."""
    order: torch.Tensor | None
    """[batch, columns], how columns were moved to bring padding to the left; None: they were not."""
    with_gradients: bool
    cuttable: bool
    return_dict: bool

    @property
    def settings(self) -> SinkSettings:
        """The sizes of this call: the cache's, or the model's where there is none."""
        return (self.setup if self.cache is None else self.cache).settings

    @property
    def rows(self) -> Counters:
        """Where the streams stand before the call."""
        rows = self.cache.streams.rows if self.cache is not None else None
        return Counters.empty(self.batch_size) if rows is None else rows

    @property
    def tokens(self) -> torch.Tensor | None:
        """[batch, columns] bool on the CPU: the tokens where the caller had them; None: all columns."""
        return self.real if self.order is None else self.real.gather(1, self.order.argsort(dim=1).to("cpu"))

    def pieces(self, size: int) -> list[slice]:
        """The columns of the call, cut into pieces of `size` where that changes nothing."""
        if not self.setup.architecture.states_continue:
            size = 1 if any(self.rows.seen) else self.columns
        elif not self.cuttable:
            size = self.columns
        return [slice(start, min(start + size, self.columns)) for start in range(0, self.columns, size)]

    def counts(self, piece: slice) -> tuple[int, ...]:
        """Real tokens of each row in `piece`."""
        if self.real is None:
            return (piece.stop - piece.start,) * self.batch_size
        return tuple(self.real[:, piece].sum(1).tolist())

    def arguments(self, piece: slice) -> dict[str, Any]:
        """Arguments of the base model's own forward for `piece`."""
        arguments = dict(self.given)
        for name in ("input_ids", "inputs_embeds", "per_layer_inputs", "ple_input_ids"):
            if (states := arguments.get(name)) is not None:
                arguments[name] = _reordered(states, self.order)[:, piece]
        if "logits_to_keep" in arguments:  # Gemma 4 would leave out queries that the call's step counts
            arguments["logits_to_keep"] = None
        arguments["attention_mask"] = self._mask(piece)
        return arguments

    def _mask(self, piece: slice):
        """The mask for attention and, where there are states, the padding for them."""
        ready = ready_mask(self.setup, self.device)
        if ready is None or not self.setup.has_states:
            return ready
        padding = None if self.real is None else self.real[:, piece].long().to(self.device)
        return {**dict.fromkeys(ATTENTION, ready), **dict.fromkeys(LINEAR, padding)}

    def restore_order(self, output: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        """Columns of the output where the caller had them."""
        if self.order is None:
            return output
        back = self.order.argsort(dim=1)
        output.last_hidden_state = _reordered(output.last_hidden_state, back)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(_reordered(states, back) for states in output.hidden_states)
        if output.get("attentions") is not None:
            output.attentions = tuple(
                None if weights is None else _reordered(weights.transpose(1, 2), back).transpose(1, 2)
                for weights in output.attentions
            )
        return output


def ready_mask(setup: Setup, device: torch.device) -> torch.Tensor | None:
    """A mask that base models take as it is and make no other: who sees whom is in the call's step."""
    return torch.zeros((1, 1, 1, 1), device=device) if setup.architecture.accepts_4d_mask else None


def read_inputs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Inputs:
    """Read and check the arguments of a call of the base model `model`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        Naming the argument, its value and the cure; nothing has been changed by then.
    """
    setup = setup_of(model)
    setup.architecture.check(model.config)
    given = text_arguments(named_arguments(type(model), args, kwargs))
    refuse_media(model, given)
    batch_size, columns, device = _shape(given)
    wants_attentions = given.get("output_attentions", getattr(model.config, "output_attentions", False))
    return_dict = given.pop("return_dict", getattr(model.config, "return_dict", True))
    with_gradients = torch.is_grad_enabled()
    cache, keep_cache = _cache(setup, given, batch_size, columns, with_gradients)
    real = real_columns(given.pop("attention_mask", None), batch_size, columns, cache)
    check_position_ids(given.pop("position_ids", None), real, batch_size, columns, cache)
    if wants_attentions:
        check_attentions(columns, (setup if cache is None else cache).settings.visible_size)
    real, order = _padding_left(real, device)
    if setup.settings.prefill == "dense":
        check_dense(setup, cache, columns if real is None else real.sum(1))
    if setup.has_states:
        check_padding_of_states(real, order, cache)
    if not setup.architecture.states_continue and cache is not None and any(cache.streams.seen) and columns > 1:
        check_single_tokens(setup, with_gradients)
    return Inputs(
        setup=setup,
        given=given,
        batch_size=batch_size,
        columns=columns,
        device=device,
        cache=cache,
        keep_cache=keep_cache,
        real=real,
        order=order,
        with_gradients=with_gradients,
        cuttable=setup.settings.prefill == "streaming" and not with_gradients and not wants_attentions,
        return_dict=return_dict is not False,
    )


def _shape(given: dict[str, Any]) -> tuple[int, int, torch.device]:
    """Batch size, columns and device of the tokens, given as ids or as embeddings."""
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
    states, name, dims = (ids, "input_ids", 2) if embeds is None else (embeds, "inputs_embeds", 3)
    if states.dim() != dims or 0 in states.shape[:2]:
        raise ValueError(
            f"{name} has the shape {tuple(states.shape)}; it must be [batch, columns] with at least one of each"
            + (" and hidden_size." if dims == 3 else ".")
        )
    return states.shape[0], states.shape[1], states.device


def _cache(setup: Setup, given: dict, batch_size: int, columns: int, with_gradients: bool):
    """The cache of the call and whether the caller keeps it."""
    model, cache = setup.model, given.pop(CACHE, None)
    checkpointing = with_gradients and model.training and _checkpoints(model)
    if cache is not None:
        check_cache(cache, setup, batch_size)
        if checkpointing:
            raise ValueError(
                "cache cannot be used while gradient checkpointing is on in training; leave it out or call "
                "model.eval() or model.gradient_checkpointing_disable()."
            )
        return cache, True
    use_cache = given.get("use_cache")
    use_cache = getattr(model.config, "use_cache", False) if use_cache is None else use_cache
    given["use_cache"] = use_cache = bool(use_cache) and not checkpointing
    if use_cache or (columns > 1 and not with_gradients):
        return AttentionSinkKVCache(model), use_cache
    return None, False


def _checkpoints(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on anywhere in `model`."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _padding_left(real: torch.Tensor | None, device: torch.device):
    """`real` with padding moved to the left, and the order of columns that does it; (None, None) without padding."""
    if real is None or bool(real.all()):
        return None, None
    order = real.int().argsort(dim=1, stable=True)
    moved = not torch.equal(order, torch.arange(real.shape[1]).expand_as(order))
    return real.gather(1, order), order.to(device) if moved else None


def _reordered(states: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """`states` [batch, columns, …] with columns in the order `order` [batch, columns]."""
    if order is None:
        return states
    index = order.to(states.device).view(*order.shape, *[1] * (states.dim() - 2))
    return states.gather(1, index.expand(*order.shape, *states.shape[2:]))
