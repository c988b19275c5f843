"""Subclasses that take the place of a module's class while its model streams.

`module.__class__` is set to a class that runs our forward. Copies of the module, shallow ones too, then run it for
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

_CLASSES: dict[tuple[type[Any], Members], type[Any]] = {}


def streaming_class(plain: type[Any], members: Members) -> type[Any]:
    """Return the subclass of `plain` with `members`; it is always the same one, so that modules alike share it."""
    if (plain, members) not in _CLASSES:
        body = {name: _fitted(value, name, getattr(plain, name, None)) for name, value in members}
        body |= {
            "__init__": _fitted(_init, "__init__", plain.__init__),
            "__doc__": plain.__doc__,
            "__module__": plain.__module__,
            "__qualname__": plain.__qualname__,
            "__reduce_ex__": _reduce,
            "_plain_class": plain,
            "_streaming_members": members,
        }
        metaclass: Any = type(plain)
        made = metaclass(plain.__name__, (plain,), body)
        if "forward" in made.__dict__ and "forward" not in body:  # Transformers wraps that of a layer's subclasses
            del made.forward
        _CLASSES.setdefault((plain, members), made)  # another thread may have been faster
    return _CLASSES[plain, members]


def is_streaming(module: nn.Module) -> bool:
    """Return whether `module` has a streaming class at present."""
    return "_plain_class" in type(module).__dict__


def plain_class(module: nn.Module) -> type[Any]:
    """Return the class of `module` without attention sinks."""
    return _streaming(module)._plain_class if is_streaming(module) else type(module)


def members_of(module: nn.Module) -> Members:
    """Return what `module`, which streams, has in place of what its plain class has."""
    members: Members = _streaming(module)._streaming_members
    return members


def _streaming(module: nn.Module) -> Any:
    """Return the class of `module`, of which only `streaming_class` knows what it has."""
    return type(module)


def _fitted(value: Any, name: str, plain: Any) -> Any:
    """Return a function as a method that looks like the `plain` one from outside; any other value as it is."""
    if not isinstance(value, FunctionType):
        return value
    method: Any = FunctionType(value.__code__, value.__globals__, name, value.__defaults__, value.__closure__)
    method.__kwdefaults__, method.__doc__ = value.__kwdefaults__, value.__doc__
    if callable(plain):
        method.__signature__, method.__doc__ = inspect.signature(plain), plain.__doc__
        method.__module__, method.__qualname__ = plain.__module__, plain.__qualname__
    return method


def _init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Initialise a new object, as in `type(model)(config)`: it has no attention sinks, whatever `model` has."""
    plain = _streaming(module)._plain_class
    if is_streaming(module):
        object.__setattr__(module, "__class__", plain)
    plain.__init__(module, *args, **kwargs)


def _reduce(module: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickle and copy a module by its plain class, since its own class cannot be found by name."""
    plain = _streaming(module)._plain_class
    how, arguments, *state = plain.__reduce_ex__(module, protocol)
    if is_streaming(module):  # and of no class that others have derived from it
        how, arguments = _made_anew, (plain, members_of(module))
    return how, arguments, *state


def _made_anew(plain: type, members: Members) -> nn.Module:
    made: Any = streaming_class(plain, members)
    module: nn.Module = made.__new__(made)
    return module
