"""Hooks on the modules of a model see what the modules see. Where somebody has put one, a long call is not cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate")
"""Their hooks distribute weights and record outputs. They do not mind in how many pieces a call runs."""


def hooked_module(model: nn.Module) -> str | None:
    """Return the name of a module inside `model` with a forward hook of the user's; None when there is none.

    Hooks of `model` itself run around the call, and see all of it.
    """
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, module in modules:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if module is not model and not all(map(_is_of_a_library, hooks)):
            return name
    return None


def _is_of_a_library(function: Callable[..., Any]) -> bool:
    """Return whether a hook is code of a library; a `partial` is what it calls."""
    code = function.func if isinstance(function, partial) else function
    return str(getattr(code, "__module__", "")).partition(".")[0] in LIBRARIES


def warn_of_pieces(model: nn.Module) -> None:
    """Warn, once, when the user's hooks see a call of several tokens as calls of one token each."""
    if (name := hooked_module(model)) is not None:
        logger.warning_once(
            f"a forward hook on {name} of {type(model).__name__} sees a call of several tokens as calls of one token "
            "each, because the states of this model start anew in every call of several tokens in Transformers itself; "
            "join what the hook sees along the columns, or pass one token at a time."
        )
