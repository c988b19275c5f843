"""Put attention sinks into a loaded model and take them out again without a trace."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .architectures import architecture_of
from .attention import ATTENTION_NAME
from .forward import attention_forward, named_forward, rotary_forward, streaming_forward, written_out_forward
from .generation import OVERRIDES
from .injection import MARK, Injection, base_model_of, without_adapter
from .settings import SinkSettings
from .wrapper import wrapper_forward


def inject_attention_sinks(
    model: nn.Module,
    attention_sink_size: int = 4,
    attention_sink_window_size: int = 1020,
    attention_sink_prefill: str = "streaming",
) -> nn.Module:
    """Make a loaded model stream; injecting again replaces the settings.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Any supported model, with or without a head, also quantised, offloaded or PEFT-wrapped.
    attention_sink_size : int, default 4
        First tokens of every stream that are never evicted.
    attention_sink_window_size : int, default 1020
        Most recent tokens a query sees besides itself.
    attention_sink_prefill : {"streaming", "dense"}, default "streaming"
        Whether the tokens of one call see what they would see one by one, or every cached token and each other.

    Returns
    -------
    nn.Module
        `model` itself.

    Raises
    ------
    NotImplementedError
        When the architecture is not supported.
    TypeError, ValueError
        When `model` is no Transformers model or a setting is out of range. The model is then as it was.
    """
    settings = SinkSettings(attention_sink_size, attention_sink_window_size, attention_sink_prefill)
    base = base_model_of(model)
    injection = Injection(base, settings, architecture_of(base.config))
    injection = replace(injection, settings=injection.fit(settings))
    remove_attention_sinks(model)
    patches = _patch_model(injection, without_adapter(model))
    base.__dict__[MARK] = Injected(injection, patches)
    injection.warn_beyond_training(injection.settings)
    return model


def remove_attention_sinks(model: nn.Module) -> nn.Module:
    """Give `model` back as it was before `inject_attention_sinks`; a model without sinks is left alone."""
    injected = base_model_of(model).__dict__.pop(MARK, None)
    for patch in reversed(injected.patches if injected else []):
        patch.undo()
    return model


@contextmanager
def attention_sinks_injected(
    model: nn.Module,
    attention_sink_size: int = 4,
    attention_sink_window_size: int = 1020,
    attention_sink_prefill: str = "streaming",
) -> Iterator[nn.Module]:
    """`inject_attention_sinks` for the length of a `with` block; settings from before it come back after it."""
    before = base_model_of(model).__dict__.get(MARK)
    inject_attention_sinks(model, attention_sink_size, attention_sink_window_size, attention_sink_prefill)
    try:
        yield model
    finally:
        if before is None:
            remove_attention_sinks(model)
        else:
            inject_attention_sinks(model, *astuple(before.injection.settings))


@dataclass
class Patch:
    """One attribute of one module replaced; knows how to put back what was there."""

    module: nn.Module
    name: str
    value: Any
    previous: Any = None

    def apply(self) -> None:
        self.previous = self.module.__dict__.get(self.name)
        self.module.__dict__[self.name] = self.value

    def undo(self) -> None:
        for name in {self.name, "_old_forward"} if self.name == "forward" else {self.name, "forward"}:
            if self.module.__dict__.get(name) is self.value:
                self._restore(name)

    def _restore(self, name: str) -> None:
        if self.previous is not None:
            self.module.__dict__[name] = self.previous
        elif name == "_old_forward":  # accelerate wrapped the patch: it needs a forward to call
            self.module.__dict__[name] = type(self.module).forward.__get__(self.module)
        else:
            del self.module.__dict__[name]


@dataclass(frozen=True)
class Injected:
    """What a base model keeps under `MARK`: the injection and how to undo it."""

    injection: Injection
    patches: list[Patch]


def _patch_model(injection: Injection, outer: PreTrainedModel) -> list[Patch]:
    """Patch the base model, its rotary and attention modules and, where there is one, `generate`."""
    base, facts = injection.model, injection.architecture
    attention = [module for module in base.modules() if type(module).__name__ == facts.attention]
    if not attention:
        raise NotImplementedError(
            f"{type(base).__name__} has no {facts.attention}, which attention_sinks knows how to patch; use the class "
            "of Transformers for this model_type."
        )
    patches = []
    for module, forward in _forwards(injection, outer, attention):
        patches.append(_forward_patch(module, forward))
        patches[-1].apply()
    for patch in _attributes(injection, outer, attention):
        patches.append(patch)
        patch.apply()
    return patches


def _forwards(injection: Injection, outer: PreTrainedModel, attention: list[nn.Module]):
    """Modules, each with what runs in place of its forward; a later one of the same module calls the earlier."""
    base, facts = injection.model, injection.architecture
    yield base, streaming_forward
    if outer.base_model is not base:
        yield outer.base_model, wrapper_forward
    yield from ((module, rotary_forward) for module in facts.scheme(base.config).modules(base))
    yield from facts.others(outer, base)
    if outer is not base:
        yield outer, named_forward
    forward = partial(written_out_forward, function=facts.forward) if facts.forward else attention_forward
    yield from ((module, forward) for module in attention)


def _attributes(injection: Injection, outer: PreTrainedModel, attention: list[nn.Module]) -> Iterator[Patch]:
    """Other attributes to replace: the config of attention modules, methods that `generate` calls, a flag of layers."""
    if not injection.architecture.forward:
        own_config = _with_attention(injection.model.config)
        yield from (Patch(module, "config", own_config) for module in attention)
    if outer.can_generate():
        for name, override in OVERRIDES.items():
            yield Patch(outer, name, _bound(override, outer, getattr(type(outer), name, override)))
    for module in injection.model.modules():
        if isinstance(module, GradientCheckpointingLayer):  # which would keep the call's view from its attention
            yield Patch(module, "_can_checkpoint_with_cache", True)


def _forward_patch(module: nn.Module, replacement: Callable) -> Patch:
    """Where accelerate has hooked a module, its hook must stay outside: patch what the hook calls."""
    name = "_old_forward" if "_old_forward" in module.__dict__ else "forward"
    previous = module.__dict__.get(name)
    if getattr(previous, "__func__", None) is type(module).forward:
        previous = None  # the class's own, which copies and pickles better by name
    return Patch(module, name, _bound(partial(replacement, previous=previous), module, type(module).forward))


def _with_attention(config: Any) -> Any:
    """A copy of `config` for attention modules, naming our attention; the user's config keeps the user's choice."""
    own = copy.copy(config)
    own.__dict__["_attn_implementation_internal"] = ATTENTION_NAME
    return own


def _bound(function: Callable, module: nn.Module, like: Callable) -> partial:
    """`function` with `module` as its first argument and the signature of `like`; copies and pickles with `module`."""
    bound = partial(function, module)
    parameters = list(inspect.signature(like).parameters.values())[1:]
    bound.__signature__ = inspect.Signature([parameter.replace(annotation=parameter.empty) for parameter in parameters])
    return bound
