"""Patches: attributes of modules that are replaced while a model streams, and how they are put back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .architecture.setup import MARK, Setup, base_model_of, without_adapter
from .generation.overrides import OVERRIDES
from .streaming.attention import ATTENTION_NAME
from .streaming.forward import attention_forward, named_forward, rotary_forward, streaming_forward, written_out_forward
from .streaming.multimodal import wrapper_forward


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
class InstalledPatches:
    """What a base model keeps under `MARK`: the injection and how to undo it."""

    setup: Setup
    patches: list[Patch]


def put_in(model: nn.Module, setup: Setup) -> None:
    """Patch `model`, which has no attention sinks; NotImplementedError where it has no attention to patch."""
    setup.model.__dict__[MARK] = InstalledPatches(setup, _patch_model(setup, without_adapter(model)))


def take_out(model: nn.Module) -> None:
    """Undo all patches of `model`; one without attention sinks is left alone."""
    injected = base_model_of(model).__dict__.pop(MARK, None)
    for patch in reversed(injected.patches if injected else []):
        patch.undo()


def _patch_model(setup: Setup, outer: PreTrainedModel) -> list[Patch]:
    """Patch the base model, its rotary and attention modules and, where there is one, `generate`."""
    base, facts = setup.model, setup.architecture
    attention = [module for module in base.modules() if type(module).__name__ == facts.attention]
    if not attention:
        raise NotImplementedError(
            f"{type(base).__name__} has no {facts.attention}, which attention_sinks knows how to patch; use the class "
            "of Transformers for this model_type."
        )
    patches = []
    for module, forward in _forwards(setup, outer, attention):
        patches.append(_forward_patch(module, forward))
        patches[-1].apply()
    for patch in _attributes(setup, outer, attention):
        patches.append(patch)
        patch.apply()
    return patches


def _forwards(setup: Setup, outer: PreTrainedModel, attention: list[nn.Module]):
    """Modules, each with what runs in place of its forward; a later one of the same module calls the earlier."""
    base, facts = setup.model, setup.architecture
    yield base, streaming_forward
    if outer.base_model is not base:
        yield outer.base_model, wrapper_forward
    yield from ((module, rotary_forward) for module in facts.scheme(base.config).modules(base))
    yield from facts.extra_patches(outer, base)
    if outer is not base:
        yield outer, named_forward
    forward = partial(written_out_forward, function=facts.forward) if facts.forward else attention_forward
    yield from ((module, forward) for module in attention)


def _attributes(setup: Setup, outer: PreTrainedModel, attention: list[nn.Module]) -> Iterator[Patch]:
    """Other attributes to replace: the config of attention modules, methods that `generate` calls, a flag of layers."""
    if not setup.architecture.forward:
        own_config = _with_attention(setup.model.config)
        yield from (Patch(module, "config", own_config) for module in attention)
    if outer.can_generate():
        for name, override in OVERRIDES.items():
            yield Patch(outer, name, _bound(override, outer, getattr(type(outer), name, override)))
    for module in setup.model.modules():
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
