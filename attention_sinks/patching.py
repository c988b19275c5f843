"""A model gets its patches when attention sinks go in, all or none, and gives them back when they go out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .architecture.calls import RunningCalls
from .architecture.modules import base_model_of, without_adapter
from .architecture.setup import MARK, Setup, setup_of
from .architecture.streaming_class import is_streaming, plain_class
from .generation.overrides import OVERRIDES
from .patches import ClassPatch, ConfigPatch, Patch, plain_config, standing_in, with_attention
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
class InstalledPatches:
    """What a base model keeps under `MARK`: its setup and its patches, those of models around it included."""

    setup: Setup
    patches: tuple[Patch, ...]
    calls: RunningCalls = field(default_factory=RunningCalls, compare=False)


def installed_in(base: PreTrainedModel) -> InstalledPatches | None:
    """Return what is installed in a base model.

    Raises
    ------
    ValueError
        When `base` is a shallow copy of a model with attention sinks: the patches are that model's.
    """
    installed: InstalledPatches | None = base.__dict__.get(MARK)
    if installed is not None and all(patch.module is not base for patch in installed.patches):
        raise ValueError(
            f"model={type(base).__name__} is a shallow copy of a model with attention sinks and shares its layers; "
            "call inject_attention_sinks or remove_attention_sinks with the original, and copy it again."
        )
    return installed


def install(model: nn.Module, setup: Setup) -> None:
    """Make `model` stream as `setup` says; one that streams already changes its setup.

    Raises
    ------
    NotImplementedError
        When it has no attention to patch.
    ValueError
        When it is a shallow copy of a model with attention sinks.
    RuntimeError
        When the class of one of its modules has been replaced since attention sinks went in, or while a call runs.
    """
    before = installed_in(setup.model)
    outer = without_adapter(model)
    assert isinstance(outer, PreTrainedModel)  # or there would be no setup
    _check_classes(outer.modules())
    patches = tuple(_patches(setup, outer))
    patched = {patch.module for patch in patches}
    others = (patch for patch in _patches_of(before) if patch.module not in patched)  # other heads of the base
    calls = RunningCalls() if before is None else before.calls
    _switch(setup.model, before, InstalledPatches(setup, (*patches, *others), calls))


def uninstall(model: nn.Module) -> None:
    """Give `model` back as it was without attention sinks; a model without them is left alone.

    Raises
    ------
    ValueError
        When it is a shallow copy of a model with attention sinks.
    RuntimeError
        When the class of one of its modules has been replaced since attention sinks went in, or while a call runs.
    """
    base = base_model_of(model)
    before = installed_in(base)
    modules = list(without_adapter(model).modules())
    _check_classes([*modules, *(patch.module for patch in _patches_of(before))])
    _switch(base, before, None)
    for module in modules:  # of shallow copies, and what a second Ctrl-C has left
        for patch in standing_in(module):
            patch.undo()


def restore(base: PreTrainedModel, before: InstalledPatches | None) -> None:
    """Give a base model, and the models around it, the patches back that `installed_in` has returned.

    Raises
    ------
    RuntimeError
        When a call runs. The model then keeps what it has.
    """
    _switch(base, base.__dict__.get(MARK), before)


def _switch(base: PreTrainedModel, before: InstalledPatches | None, after: InstalledPatches | None) -> None:
    """Put the patches of `after` in the place of those of `before`, while no call runs and none can begin.

    An exception, Ctrl-C too, puts all of those of `before` back.
    """
    installed = before or after
    calls = RunningCalls() if installed is None else installed.calls
    with calls.none(base):
        try:
            _settle(base, before, after)
        except BaseException:
            _settle(base, after, before)
            raise


def _settle(base: PreTrainedModel, unwanted: InstalledPatches | None, wanted: InstalledPatches | None) -> None:
    """Undo the patches of `unwanted` that `wanted` does not have, and apply those of `wanted`.

    The models come first and go last, so that a call that begins meanwhile finds that its model is changing.
    """
    kept = {(type(patch), patch.module): patch for patch in _patches_of(wanted)}
    for patch in reversed(_patches_of(unwanted)):
        if kept.get((type(patch), patch.module)) != patch:
            patch.undo()
    for patch in kept.values():
        if not patch.is_applied:
            patch.apply()
    if wanted is None:
        base.__dict__.pop(MARK, None)
    else:
        base.__dict__[MARK] = wanted


def _patches_of(installed: InstalledPatches | None) -> tuple[Patch, ...]:
    return () if installed is None else installed.patches


def _check_classes(modules: Iterable[nn.Module]) -> None:
    """Raise RuntimeError when something else has subclassed the streaming class of a module, as FSDP2 does."""
    for module in modules:
        if not is_streaming(module) and hasattr(type(module), "_plain_class"):
            raise RuntimeError(
                f"the class of a {type(module).__name__} of the model has been replaced since attention sinks went in; "
                "undo that first (fully_shard, parametrizations), then inject or remove attention sinks."
            )


# ---- which patches a model needs


def _patches(setup: Setup, outer: PreTrainedModel) -> Iterator[Patch]:
    """All patches of a model: base model, rotary and attention modules and, where there is one, `generate`."""
    base, facts = setup.model, setup.architecture
    attention = [module for module in base.modules() if plain_class(module).__name__ == facts.attention]
    for module in base.modules():
        if facts.attention in (parent.__name__ for parent in plain_class(module).__mro__[1:]):
            raise NotImplementedError(
                f"{type(base).__name__} has a {type(module).__name__}, derived from {facts.attention}, which "
                f"attention_sinks does not know how to patch; use {facts.attention} itself."
            )
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
        yield ClassPatch(module, plain_class(module), tuple(own.items()))
    if facts.forward is None:
        configs: dict[int, PreTrainedConfig] = {}
        for module in attention:
            plain = plain_config(module.__dict__["config"])
            yield ConfigPatch(module, configs.setdefault(id(plain), with_attention(plain)))


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
