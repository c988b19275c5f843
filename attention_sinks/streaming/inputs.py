"""The arguments of a call of the base model are read once, and checked before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
    check_checkpointing,
    check_dense,
    check_facts,
    check_padding_of_states,
    check_position_ids,
    check_single_tokens,
    real_columns,
    refuse_tokens,
    trains_with_checkpointing,
)
from .hooks import hooked_module, warn_of_pieces
from .multimodal import MEDIA, TEXT_ARGUMENTS, refuse_media
from .padding import clear_padding, padding_left, reordered


def read_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of `model` by name, with the mask and the positions that the caller gave.

    Raises
    ------
    NotImplementedError
        When an argument brings something else than text.
    """
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
    """The setup of the base model."""
    given: dict[str, Any]
    """Arguments by name, without those that the library makes itself: mask, positions, cache."""
    batch_size: int
    """How many rows the call has."""
    columns: int
    """How many columns the call has, padding included."""
    device: torch.device
    """The device of the tokens."""
    cache: AttentionSinkKVCache | None
    """The cache to stream through; None for a call without a past that leaves nothing behind."""
    keep_cache: bool
    """Whether the cache is the caller's to keep."""
    table: LayerTable
    """What the layers see under the S and W of the cache, or of the model where there is no cache."""
    counters: Counters
    """Where the streams stand before the call."""
    real: torch.Tensor | None
    """[batch, columns] bool on the CPU, True for a token, padding on the left; None where all columns are tokens."""
    order: torch.Tensor | None
    """[batch, columns], the order of columns that brings padding to the left; None where it stands there."""
    with_gradients: bool
    """Whether the caller trains through the call."""
    wants_attentions: bool
    """Whether the call returns the weights of attention."""
    return_dict: bool
    """Whether the call returns a `ModelOutput`, not a tuple."""

    @property
    def is_step(self) -> bool:
        """Whether the call is one token per row after all sinks. Such a token is written in place.

        Rows that feed nothing may stand anywhere: also before their first token, as rows that were cleared do.
        """
        if self.columns != 1 or self.cache is None or self.with_gradients:
            return False
        least = max(1, self.table.with_sinks.sink_size)
        if min(self.counters.seen) >= least:
            return True
        if self.real is None or not self.cache.is_initialized:
            return False
        return all(t >= least for t, active in zip(self.counters.seen, self.real[:, 0].tolist(), strict=True) if active)

    @property
    def tokens(self) -> torch.Tensor | None:
        """`real` with its columns where the caller had them."""
        if self.real is None or self.order is None:
            return self.real
        return self.real.gather(1, self.order.argsort(dim=1).to("cpu"))

    def chunks(self, size: int) -> Iterator[slice]:
        """Yield the columns of the call, cut into chunks of at most `size` where nobody sees that."""
        if not self.setup.architecture.states_continue:
            size = 1 if any(self.counters.seen) else self.columns
            if size < self.columns:
                warn_of_pieces(self.setup.model)
        elif self.columns > size and self._stays_whole():
            size = self.columns
        for start in range(0, self.columns, size):
            yield slice(start, min(start + size, self.columns))

    def _stays_whole(self) -> bool:
        """Return whether somebody would see that the call was cut."""
        if self.setup.settings.prefill == "dense" or self.with_gradients or self.wants_attentions:
            return True
        return hooked_module(self.setup.model) is not None

    def counts(self, chunk: slice) -> tuple[int, ...]:
        """Return how many tokens each row has in `chunk`."""
        if self.real is None:
            return (chunk.stop - chunk.start,) * self.batch_size
        return tuple(self.real[:, chunk].sum(1).tolist())

    def arguments(self, chunk: slice) -> dict[str, Any]:
        """Return the arguments of the base model's own forward for `chunk`."""
        arguments = dict(self.given)
        if self.order is not None or chunk.stop - chunk.start < self.columns:
            for name in ("input_ids", "inputs_embeds", "per_layer_inputs", "ple_input_ids"):
                if (states := arguments.get(name)) is not None:
                    arguments[name] = reordered(states, self.order)[:, chunk]
        if "logits_to_keep" in arguments:  # Gemma 4 would leave out queries that the call's plan counts
            arguments["logits_to_keep"] = None
        arguments["attention_mask"] = self._mask(chunk)
        return arguments

    def _mask(self, chunk: slice) -> torch.Tensor | dict[str, torch.Tensor | None] | None:
        """Return the mask for attention and, in a model with states, the padding that they leave out."""
        ready = ready_mask(self.setup, self.device)
        if ready is None or not self.setup.has_states:
            return ready
        padding = None if self.real is None else self.real[:, chunk].long().to(self.device)
        return {**dict.fromkeys(ATTENTION, ready), **dict.fromkeys(LINEAR, padding)}

    def restore_order(self, output: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        """Put the columns of `output` where the caller had them, and return it."""
        if self.order is None:
            return output
        back = self.order.argsort(dim=1)
        output["last_hidden_state"] = reordered(output["last_hidden_state"], back)
        if (hidden_states := output.get("hidden_states")) is not None:
            output["hidden_states"] = tuple(
                None if states is None else reordered(states, back) for states in hidden_states
            )
        if (attentions := output.get("attentions")) is not None:
            output["attentions"] = tuple(
                None if weights is None else reordered(weights.transpose(1, 2), back).transpose(1, 2)
                for weights in attentions
            )
        return output


def ready_mask(setup: Setup, device: torch.device) -> torch.Tensor | None:
    """Return a mask that a base model accepts as it is, so that it makes no other; None where it accepts none.

    Its content does not matter: the plan of the call says who sees whom.
    """
    if not setup.architecture.accepts_4d_mask:
        return None
    return torch.zeros((1, 1, 1, 1), dtype=torch.float32, device=device)


def read_inputs(setup: Setup, given: dict[str, Any]) -> Inputs:
    """Check the arguments of a call of the base model that has `setup`, `given` by name, and return what they mean.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        The message names the argument, its value and the cure. Nothing has been changed by then.
    """
    model, architecture, config = setup.model, setup.architecture, setup.model.config
    if architecture.unsupported_reason is not None:
        architecture.check(config)
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    tokens: Any = ids if embeds is None else embeds
    if (ids is None) == (embeds is None) or tokens.dim() != (2 if embeds is None else 3) or 0 in tokens.shape[:2]:
        refuse_tokens(ids, embeds)
    batch_size, columns, device = tokens.shape[0], tokens.shape[1], tokens.device
    wants_attentions = bool(given.get("output_attentions", getattr(config, "output_attentions", False)))
    return_dict = given.pop("return_dict", getattr(config, "return_dict", True)) is not False
    with_gradients = torch.is_grad_enabled()
    cache, keep_cache = given.pop(CACHE, None), True
    if cache is None:
        setup.notice_changes()
        cache, keep_cache = _cache_of_one_call(setup, given, columns, with_gradients)
    elif not isinstance(cache, AttentionSinkKVCache) or not cache.serves(setup, batch_size):
        check_cache(cache, setup, batch_size)
    settings = setup.fit(setup.settings) if cache is None else cache.settings
    sizes = (settings.sink_size, settings.window_size, settings.prefill, config.num_hidden_layers)
    table = setup.tables.known.get(sizes) or setup.layer_table(settings)
    if cache is not None and len(cache.layers) != len(table.reaches):
        check_cache(cache, setup, batch_size)
    if cache is not None and cache.facts is not table.facts:
        check_facts(cache, setup, table)
    if with_gradients and keep_cache and cache is not None:
        check_checkpointing(model)
    mask, position_ids = given.pop("attention_mask", None), given.pop("position_ids", None)
    real = None if mask is None else real_columns(mask, batch_size, columns, cache)
    if position_ids is not None:
        check_position_ids(position_ids, real, batch_size, columns, cache)
    if wants_attentions:
        check_attentions(columns, settings.visible_size)
    if real is not None:
        clear_padding(given, real)
    real, order = (None, None) if real is None else padding_left(real, device)
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
        table=table,
        counters=counters,
        real=real,
        order=order,
        with_gradients=with_gradients,
        wants_attentions=wants_attentions,
        return_dict=return_dict,
    )


def _cache_of_one_call(
    setup: Setup, given: dict[str, Any], columns: int, with_gradients: bool
) -> tuple[AttentionSinkKVCache | None, bool]:
    """Return the cache for a call that was given none, if it needs one, and whether the caller keeps it."""
    model, rounds = setup.model, setup.settings.cache_dtype != "auto"
    use_cache = given.get("use_cache")
    use_cache = getattr(model.config, "use_cache", False) if use_cache is None else use_cache
    given["use_cache"] = use_cache = bool(use_cache) and not (with_gradients and trains_with_checkpointing(model))
    if use_cache or ((columns > 1 or rounds) and not with_gradients):
        return AttentionSinkKVCache(model), use_cache
    return None, False
