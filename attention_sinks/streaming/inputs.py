"""What a call of the base model brings: read once, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..architecture.layer_kinds import ATTENTION, LINEAR
from ..architecture.modules import named_arguments
from ..architecture.setup import Setup
from ..cache.cache import AttentionSinkKVCache
from ..plan.counters import Counters
from ..plan.table import LayerTable
from ..versions import CACHE, OTHER_CACHE_NAME
from .checks import (
    check_attentions,
    check_cache,
    check_dense,
    check_padding_of_states,
    check_position_ids,
    check_single_tokens,
    real_columns,
)
from .multimodal import MEDIA, TEXT_ARGUMENTS, refuse_media


def read_arguments(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `model` by name, with the caller's own mask and positions, and text alone."""
    given = named_arguments(type(model), args, kwargs) if args or OTHER_CACHE_NAME in kwargs else dict(kwargs)
    mask = given.get("attention_mask")
    if isinstance(mask, dict) and TEXT_ARGUMENTS in mask:
        given.update(mask[TEXT_ARGUMENTS])
    for name in given:
        if name.startswith(MEDIA):
            refuse_media(model, given)
    return given


@dataclass(frozen=True)
class Inputs:
    """A checked call of the base model, ready to be cut into chunks."""

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
    table: LayerTable
    """What the layers see under the sizes of this call: the cache's, or the model's where there is none."""
    counters: Counters
    """Where the streams stand before the call."""
    real: torch.Tensor | None
    """[batch, columns] bool on the CPU, padding on the left; None: all columns are tokens of their streams."""
    order: torch.Tensor | None
    """[batch, columns], how columns were moved to bring padding to the left; None: they were not."""
    with_gradients: bool
    wants_attentions: bool
    return_dict: bool

    @property
    def is_step(self) -> bool:
        """Whether the call is one token per row after all sinks, which is written in place."""
        if self.columns != 1 or self.cache is None or self.with_gradients:
            return False
        return min(self.counters.seen) >= max(1, self.table.with_sinks.sink_size)

    @property
    def tokens(self) -> torch.Tensor | None:
        """[batch, columns] bool on the CPU: the tokens where the caller had them; None: all columns."""
        if self.real is None or self.order is None:
            return self.real
        return self.real.gather(1, self.order.argsort(dim=1).to("cpu"))

    def chunks(self, size: int) -> Iterator[slice]:
        """The columns of the call, cut into chunks of `size` where that changes nothing."""
        if not self.setup.architecture.states_continue:
            size = 1 if any(self.counters.seen) else self.columns
        elif self.setup.settings.prefill == "dense" or self.with_gradients or self.wants_attentions:
            size = self.columns
        for start in range(0, self.columns, size):
            yield slice(start, min(start + size, self.columns))

    def counts(self, chunk: slice) -> tuple[int, ...]:
        """Real tokens of each row in `chunk`."""
        if self.real is None:
            return (chunk.stop - chunk.start,) * self.batch_size
        return tuple(self.real[:, chunk].sum(1).tolist())

    def arguments(self, chunk: slice) -> dict[str, Any]:
        """Arguments of the base model's own forward for `chunk`."""
        arguments = dict(self.given)
        if self.order is not None or chunk.stop - chunk.start < self.columns:
            for name in ("input_ids", "inputs_embeds", "per_layer_inputs", "ple_input_ids"):
                if (states := arguments.get(name)) is not None:
                    arguments[name] = _reordered(states, self.order)[:, chunk]
        if "logits_to_keep" in arguments:  # Gemma 4 would leave out queries that the call's plan counts
            arguments["logits_to_keep"] = None
        arguments["attention_mask"] = self._mask(chunk)
        return arguments

    def _mask(self, chunk: slice) -> torch.Tensor | dict[str, torch.Tensor | None] | None:
        """The mask for attention and, where there are states, the padding for them."""
        ready = ready_mask(self.setup, self.device)
        if ready is None or not self.setup.has_states:
            return ready
        padding = None if self.real is None else self.real[:, chunk].long().to(self.device)
        return {**dict.fromkeys(ATTENTION, ready), **dict.fromkeys(LINEAR, padding)}

    def restore_order(self, output: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        """Put the columns of the output where the caller had them."""
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
    """A mask that base models take as it is and make no other: who sees whom is in the call's plan."""
    if not setup.architecture.accepts_4d_mask:
        return None
    return torch.zeros((1, 1, 1, 1), dtype=torch.float32, device=device)


def read_inputs(setup: Setup, given: dict[str, Any]) -> Inputs:
    """Check the arguments of a call of the base model that has `setup`, `given` by name.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        Naming the argument, its value and the cure; nothing has been changed by then.
    """
    model, architecture, config = setup.model, setup.architecture, setup.model.config
    if architecture.unsupported_reason is not None:
        architecture.check(config)
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens = ids if embeds is None else embeds
    if (ids is None) == (embeds is None) or tokens.dim() != (2 if embeds is None else 3) or 0 in tokens.shape[:2]:
        _refuse_shape(ids, embeds)
    batch_size, columns, device = tokens.shape[0], tokens.shape[1], tokens.device
    wants_attentions = bool(given.get("output_attentions", getattr(config, "output_attentions", False)))
    return_dict = given.pop("return_dict", getattr(config, "return_dict", True)) is not False
    with_gradients = torch.is_grad_enabled()
    cache, keep_cache = given.pop(CACHE, None), True
    if cache is None:
        cache, keep_cache = _cache_of_one_call(model, given, columns, with_gradients)
    elif not isinstance(cache, AttentionSinkKVCache) or not cache.serves(setup, batch_size):
        check_cache(cache, setup, batch_size)
    if with_gradients and keep_cache and cache is not None:
        _refuse_checkpointing(model)
    mask, position_ids, real, order = given.pop("attention_mask", None), given.pop("position_ids", None), None, None
    if mask is not None:
        real = real_columns(mask, batch_size, columns, cache)
    if position_ids is not None:
        check_position_ids(position_ids, real, batch_size, columns, cache)
    settings = (setup if cache is None else cache).settings
    sizes = (settings.sink_size, settings.window_size, settings.prefill, config.num_hidden_layers)
    if wants_attentions:
        check_attentions(columns, settings.visible_size)
    if real is not None:
        real, order = _padding_left(real, device)
    if setup.settings.prefill == "dense":
        check_dense(setup, cache, columns if real is None else real.sum(1))
    if real is not None and setup.has_states:
        check_padding_of_states(real, order, cache)
    counters = None if cache is None else cache.streams.counters
    counters = Counters.empty(batch_size) if counters is None else counters
    if not architecture.states_continue and any(counters.seen) and columns > 1:
        check_single_tokens(setup, with_gradients)
    return Inputs(
        setup=setup,
        given=given,
        batch_size=batch_size,
        columns=columns,
        device=device,
        cache=cache,
        keep_cache=keep_cache,
        table=setup.tables.get(sizes) or setup.layer_table(settings),
        counters=counters,
        real=real,
        order=order,
        with_gradients=with_gradients,
        wants_attentions=wants_attentions,
        return_dict=return_dict,
    )


def _refuse_shape(ids: torch.Tensor | None, embeds: torch.Tensor | None) -> None:
    if (ids is None) == (embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
    states, name = (ids, "input_ids") if embeds is None else (embeds, "inputs_embeds")
    raise ValueError(
        f"{name} has the shape {tuple(states.shape)}; it must be [batch, columns] with at least one of each"
        + ("." if embeds is None else " and hidden_size.")
    )


def _cache_of_one_call(
    model: PreTrainedModel, given: dict[str, Any], columns: int, with_gradients: bool
) -> tuple[AttentionSinkKVCache | None, bool]:
    """The cache of a call that was given none, if it needs one, and whether the caller keeps it."""
    use_cache = given.get("use_cache")
    use_cache = getattr(model.config, "use_cache", False) if use_cache is None else use_cache
    given["use_cache"] = use_cache = bool(use_cache) and not (with_gradients and _checkpoints(model))
    if use_cache or (columns > 1 and not with_gradients):
        return AttentionSinkKVCache(model), use_cache
    return None, False


def _refuse_checkpointing(model: PreTrainedModel) -> None:
    if _checkpoints(model):
        raise ValueError(
            "cache cannot be used while gradient checkpointing is on in training; leave it out or call "
            "model.eval() or model.gradient_checkpointing_disable()."
        )


def _checkpoints(model: nn.Module) -> bool:
    """Whether `model` trains with gradient checkpointing on anywhere."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _padding_left(
    real: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None] | tuple[None, None]:
    """`real` with padding moved to the left, and the order of columns that does it; (None, None) without padding."""
    if bool(real.all()):
        return None, None
    order = real.int().argsort(dim=1, stable=True)
    in_order = torch.arange(real.shape[1], dtype=torch.long, device="cpu").expand_as(order)
    return real.gather(1, order), None if torch.equal(order, in_order) else order.to(device)


def _reordered(states: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """`states` [batch, columns, …] with columns in the order `order` [batch, columns]."""
    if order is None:
        return states
    index = order.to(states.device).view(*order.shape, *[1] * (states.dim() - 2))
    return states.gather(1, index.expand(*order.shape, *states.shape[2:]))
