"""Patches: modules get streaming classes while their model streams, and their own classes back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .architecture.modules import base_model_of, without_adapter
from .architecture.setup import MARK, Setup, setup_of
from .architecture.streaming_class import OWN_FORWARD, Members, is_streaming, plain_class, streaming_class
from .generation.overrides import OVERRIDES
from .streaming.attention import ATTENTION_NAME
from .streaming.forward import (
    attention_forward,
    named_forward,
    rotary_forward,
    streaming_forward,
    takes_position_embeddings,
    wrapper_forward,
    written_out_forward,
)


@dataclass(frozen=True)
class ClassPatch:
    """One module with a streaming class in place of its own. To apply it or to undo it twice changes nothing."""

    module: nn.Module
    plain: type
    members: Members

    @property
    def streaming(self) -> type:
        return streaming_class(self.plain, self.members)

    @property
    def is_applied(self) -> bool:
        return type(self.module) is self.streaming

    def apply(self) -> None:
        """Set the class. A forward on the instance becomes what ours calls: accelerate's hook stays outside."""
        own, streaming = self.module.__dict__, self.streaming
        name = "_old_forward" if "_old_forward" in own else "forward"
        if name in own and not self._is_ours(own[name]):
            own[OWN_FORWARD] = own[name]
        if name == "_old_forward":
            own[name] = MethodType(streaming.forward, self.module)
        elif name in own:
            del own[name]
        object.__setattr__(self.module, "__class__", streaming)

    def undo(self) -> None:
        """Give back the class, and to the instance what it had; nothing bound to the streaming class is left."""
        own = self.module.__dict__
        previous = own.get(OWN_FORWARD)
        if previous is not None and "_old_forward" not in own:
            own["forward"] = previous
        for name in [name for name, value in own.items() if self._is_ours(value)]:
            if name != "_old_forward":
                del own[name]
            else:  # accelerate hooked the patch: its hook needs a forward to call
                own[name] = MethodType(self.plain.forward, self.module) if previous is None else previous
        object.__setattr__(self.module, "__class__", self.plain)
        own.pop(OWN_FORWARD, None)

    def _is_ours(self, value: Any) -> bool:
        """Whether `value` is a method of the streaming class, as others may have put it onto the instance."""
        function = getattr(value, "__func__", None)
        return function is not None and function in vars(self.streaming).values()


@dataclass(frozen=True)
class ConfigPatch:
    """An attention module that finds our attention by its config; the user's config keeps the user's choice."""

    module: nn.Module
    config: PreTrainedConfig

    @property
    def is_applied(self) -> bool:
        return self.module.__dict__["config"] is self.config

    def apply(self) -> None:
        self.module.__dict__["config"] = self.config

    def undo(self) -> None:
        self.module.__dict__["config"] = _plain_config(self.module.__dict__["config"])


Patch = ClassPatch | ConfigPatch


@dataclass(frozen=True)
class InstalledPatches:
    """What a base model keeps under `MARK`: its setup and how to undo it."""

    setup: Setup
    patches: tuple[Patch, ...]


def install(model: nn.Module, setup: Setup) -> None:
    """Make `model` stream as `setup` says; one that streams already changes its setup.

    An exception at any moment, Ctrl-C too, leaves the model as it was or with the new setup.

    Raises
    ------
    NotImplementedError
        When it has no attention to patch.
    ValueError
        When it is a shallow copy of a model with attention sinks.
    """
    base = setup.model
    before = _installed(base)
    installed = InstalledPatches(setup, tuple(_patches(setup, without_adapter(model))))
    new = [patch for patch in installed.patches if not patch.is_applied]
    try:
        for patch in new:
            patch.apply()
        base.__dict__[MARK] = installed
    except BaseException:
        if base.__dict__.get(MARK) is not installed:
            for patch in new:
                _roll_back(patch, before)
        raise
    kept = {patch.module for patch in installed.patches}
    _undo(tuple(patch for patch in before.patches if patch.module not in kept) if before else ())


def uninstall(model: nn.Module) -> None:
    """Give `model` back as it was without attention sinks; a model without them is left alone.

    An exception at any moment, Ctrl-C too, leaves the model with attention sinks or without them.
    """
    base = base_model_of(model)
    installed = _installed(base)
    if installed is None:
        return
    for patch in installed.patches:
        _check_class(patch.module)
    try:
        _undo(installed.patches)
        base.__dict__.pop(MARK, None)
    except BaseException:
        _undo(installed.patches)
        base.__dict__.pop(MARK, None)
        raise


def _installed(base: PreTrainedModel) -> InstalledPatches | None:
    """What is installed in `base`; ValueError when that belongs to the model that `base` is a shallow copy of."""
    installed: InstalledPatches | None = base.__dict__.get(MARK)
    if installed is not None and all(patch.module is not base for patch in installed.patches):
        raise ValueError(
            f"model={type(base).__name__} is a shallow copy of a model with attention sinks and shares its layers; "
            "inject into the original, or remove from it, and copy it again."
        )
    return installed


def _check_class(module: nn.Module) -> None:
    """RuntimeError when something else has subclassed the streaming class of `module`, as FSDP2 does."""
    if not is_streaming(module) and hasattr(type(module), "_plain_class"):
        raise RuntimeError(
            f"the class of a {type(module).__name__} of the model has been replaced since attention sinks went in; "
            "undo that first (fully_shard, parametrizations), then inject or remove attention sinks."
        )


def _undo(patches: tuple[Patch, ...]) -> None:
    for patch in patches:
        patch.undo()


def _roll_back(patch: Patch, before: InstalledPatches | None) -> None:
    """Undo `patch`, and apply what stood there before."""
    patch.undo()
    for earlier in before.patches if before else ():
        if type(earlier) is type(patch) and earlier.module is patch.module:
            earlier.apply()


# ---- which patches a model needs


def _patches(setup: Setup, outer: PreTrainedModel) -> Iterator[Patch]:
    """All patches of a model: base model, rotary and attention modules and, where there is one, `generate`."""
    base, facts = setup.model, setup.architecture
    attention = [module for module in base.modules() if plain_class(module).__name__ == facts.attention]
    if not attention:
        raise NotImplementedError(
            f"{type(base).__name__} has no {facts.attention}, which attention_sinks knows how to patch; use the class "
            "of Transformers for this model_type."
        )
    members: dict[nn.Module, dict[str, Any]] = {}
    for module, forward in _forwards(setup, outer):
        members[module] = {"forward": forward}
    members.update(facts.extra_patches(outer, base))
    members[base]["extra_repr"] = _extra_repr
    if outer.can_generate():
        members[outer] = {**members[outer], **OVERRIDES}
    for module in base.modules():
        if isinstance(module, GradientCheckpointingLayer):  # which would keep the call's cache from its attention
            members.setdefault(module, {})["_can_checkpoint_with_cache"] = True
    for module in attention:
        members[module] = _attention_members(plain_class(module), facts.forward)
    for module, own in members.items():
        _check_class(module)
        yield ClassPatch(module, plain_class(module), tuple(own.items()))
    if facts.forward is None:
        configs: dict[int, PreTrainedConfig] = {}
        for module in attention:
            plain = _plain_config(module.config)
            config = configs.setdefault(id(plain), _with_attention(base.config, plain))
            yield ConfigPatch(module, config)


def _forwards(setup: Setup, outer: PreTrainedModel) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Modules, each with what runs in place of its forward."""
    base, facts = setup.model, setup.architecture
    if outer is not base:
        yield outer, named_forward
    if outer.base_model is not base:
        yield outer.base_model, wrapper_forward
    yield base, streaming_forward
    yield from ((module, rotary_forward) for module in facts.scheme(base.config).modules(base))


def _attention_members(plain: type, written_out: Callable[..., Any] | None) -> dict[str, Any]:
    if written_out is not None:
        return {"forward": written_out_forward, "_written_out": written_out}
    return {"forward": attention_forward, "_takes_position_embeddings": takes_position_embeddings(plain)}


def _extra_repr(model: PreTrainedModel) -> str:
    """What `repr` says of the base model: its sinks and its window."""
    settings, own = setup_of(model).settings, plain_class(model).extra_repr(model)
    sinks = f"attention_sink_size={settings.sink_size}, attention_sink_window_size={settings.window_size}"
    return f"{own}, {sinks}" if own else sinks


def _with_attention(config: PreTrainedConfig, plain: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` that names our attention, for attention modules whose own config is `plain`."""
    own = copy.copy(config)
    own.__dict__["_attn_implementation_internal"] = ATTENTION_NAME
    own.__dict__[_PLAIN_CONFIG] = plain
    return own


_PLAIN_CONFIG = "_attention_sinks_plain_config"


def _plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config that `_with_attention` copied; any other as it is."""
    return config.__dict__.get(_PLAIN_CONFIG, config)
