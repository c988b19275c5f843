"""Subclasses that take the place of a module's class while its model streams.

`module.__class__` is set to a class that runs our forward, so that copies of the module, shallow ones too, run it for
themselves, and layers of one class share compiled code. Such a class has the name, the module and the signatures of the
class it stands for.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

from torch import nn

Members = tuple[tuple[str, Any], ...]
"""Names and values of what a streaming class has in place of what its plain class has."""

OWN_FORWARD = "_attention_sinks_own_forward"
"""Where a module keeps the forward that somebody had put on the instance; it runs in place of its plain class's."""

_CLASSES: dict[tuple[type, Members], type] = {}


def streaming_class(plain: type, members: Members) -> type:
    """The subclass of `plain` with `members`; always the same one, so that modules alike share it."""
    if (plain, members) not in _CLASSES:
        body = {name: _fitted(value, getattr(plain, name, None)) for name, value in members}
        body |= {
            "__doc__": plain.__doc__,
            "__module__": plain.__module__,
            "__qualname__": plain.__qualname__,
            "__reduce_ex__": _reduce,
            "_plain_class": plain,
            "_streaming_members": members,
        }
        made = type(plain)(plain.__name__, (plain,), body)
        if (
            "forward" in vars(made).keys() - body.keys()
        ):  # a wrapper that Transformers puts around that of every subclass
            del made.forward
        _CLASSES[plain, members] = made
    return _CLASSES[plain, members]


def is_streaming(module: nn.Module) -> bool:
    """Whether `module` has a streaming class at present."""
    return "_plain_class" in type(module).__dict__


def plain_class(module: nn.Module) -> type:
    """The class of `module` without attention sinks."""
    return type(module)._plain_class if is_streaming(module) else type(module)


def _fitted(value: Any, plain: Any) -> Any:
    """A function as a method that shows the signature of the `plain` one; any other value as it is."""
    if not isinstance(value, FunctionType):
        return value
    method = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, value.__closure__)
    method.__kwdefaults__, method.__doc__ = value.__kwdefaults__, value.__doc__
    if callable(plain):
        parameters = inspect.signature(plain).parameters.values()
        shown = [parameter.replace(annotation=parameter.empty) for parameter in parameters]
        method.__signature__ = inspect.Signature(shown)
    return method


def _reduce(module: nn.Module, protocol: int) -> tuple:
    """Pickle and copy a module by its plain class, since its own class cannot be found by name."""
    plain, members = type(module)._plain_class, type(module)._streaming_members
    _, _, *state = plain.__reduce_ex__(module, protocol)
    return _made_anew, (plain, members), *state


def _made_anew(plain: type, members: Members) -> nn.Module:
    made = streaming_class(plain, members)
    return made.__new__(made)
