"""The patches of single modules: each knows how to apply itself, and how to give back what was there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import unwrap
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from .architecture.streaming_class import OWN_FORWARD, Members, is_streaming, members_of, plain_class, streaming_class
from .streaming.attention import ATTENTION_NAME

_PLAIN_CONFIG = "_attention_sinks_plain_config"
"""The attribute under which a config that names our attention keeps the config that it is a copy of."""


@dataclass(frozen=True)
class ClassPatch:
    """One module with a streaming class in place of its own.

    `apply` and `undo` also complete what an exception has left half done.
    """

    module: nn.Module
    plain: type[Any]
    members: Members

    @property
    def streaming(self) -> type[Any]:
        return streaming_class(self.plain, self.members)

    @property
    def is_applied(self) -> bool:
        return type(self.module) is self.streaming

    def apply(self) -> None:
        """Set the class, as the last thing. A forward on the instance becomes what ours calls.

        The hook of accelerate, and a wrapper around a forward of ours, stay outside.
        """
        own = self.module.__dict__
        name = _name_of_forward(own)
        if name in own and self._is_to_be_kept(own[name]):
            own[OWN_FORWARD] = own[name]
        if name == "_old_forward":
            own[name] = MethodType(self.streaming.forward, self.module)
        elif name in own and own[name] is own.get(OWN_FORWARD):
            del own[name]
        _set_class(self.module, self.streaming)

    def undo(self) -> None:
        """Give back the class, as the first thing, and to the instance what it had."""
        own = self.module.__dict__
        _set_class(self.module, self.plain)
        for name in [name for name, value in own.items() if self._is_ours(value)]:
            if name != "_old_forward":
                del own[name]
            elif OWN_FORWARD not in own:  # accelerate hooked the patch: its hook needs a forward to call
                own[name] = self._plain_forward
        if OWN_FORWARD in own:
            own[_name_of_forward(own)] = own[OWN_FORWARD]
            del own[OWN_FORWARD]

    @property
    def _plain_forward(self) -> MethodType:
        return MethodType(self.plain.forward, self.module)

    def _is_to_be_kept(self, forward: Any) -> bool:
        """Return whether a forward on the instance must come back: `undo` makes others anew, or they lead to ours."""
        is_plain = "_old_forward" in self.module.__dict__ and forward == self._plain_forward
        return not is_plain and not self._is_ours(unwrap(forward))

    def _is_ours(self, value: Any) -> bool:
        """Return whether `value` is a method of the streaming class, as others may have put it onto the instance."""
        function = getattr(value, "__func__", None)
        return function is not None and function in vars(self.streaming).values()


def _name_of_forward(own: dict[str, Any]) -> str:
    """Return where an instance keeps a forward of its own: accelerate moves it when it puts its hook there."""
    return "_old_forward" if "_old_forward" in own else "forward"


def _set_class(module: nn.Module, module_class: type) -> None:
    object.__setattr__(module, "__class__", module_class)


@dataclass(frozen=True, eq=False)
class ConfigPatch:
    """One attention module with a config that names our attention; the user's config keeps the user's choice."""

    module: nn.Module
    config: PreTrainedConfig

    @property
    def is_applied(self) -> bool:
        return self.module.__dict__["config"] is self.config

    def apply(self) -> None:
        self.module.__dict__["config"] = self.config

    def undo(self) -> None:
        self.module.__dict__["config"] = plain_config(self.module.__dict__["config"])


Patch = ClassPatch | ConfigPatch


def standing_in(module: nn.Module) -> Iterator[Patch]:
    """Yield the patches that stand in one module, on record or not."""
    if is_streaming(module):
        yield ClassPatch(module, plain_class(module), members_of(module))
    if _PLAIN_CONFIG in getattr(module.__dict__.get("config"), "__dict__", ()):
        yield ConfigPatch(module, module.__dict__["config"])


def with_attention(plain: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of the config `plain` that names our attention."""
    own = copy.copy(plain)
    own.__dict__["_attn_implementation_internal"] = ATTENTION_NAME
    own.__dict__[_PLAIN_CONFIG] = plain
    return own


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that `with_attention` has copied; any other as it is."""
    plain: PreTrainedConfig = config.__dict__.get(_PLAIN_CONFIG, config)
    return plain
