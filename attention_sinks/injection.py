"""What was injected into a model: its settings and its architecture's facts. Nothing about any stream."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .architectures import Architecture
from .positions import Rotary
from .settings import SinkSettings
from .step import Reach

logger = logging.get_logger(__name__)

MARK = "_attention_sinks"
"""Where a base model keeps its `Injection`."""


@dataclass(frozen=True)
class Injection:
    """Settings and facts of one injected base model.

    Parameters
    ----------
    model : PreTrainedModel
        The base model, without head or adapter.
    settings : SinkSettings
        Defaults for caches made for this model.
    architecture : Architecture
        The model's row.
    """

    model: PreTrainedModel
    settings: SinkSettings
    architecture: Architecture

    def reaches(self, settings: SinkSettings) -> tuple[Reach, ...]:
        """What the queries of each layer see under `settings`."""
        reach = Reach(settings.sink_size, settings.window_size, settings.prefill == "dense")
        return (reach,) * self.model.config.num_hidden_layers

    def rotaries(self, settings: SinkSettings) -> tuple[Rotary | None, ...]:
        """What turns queries and keys of each layer under `settings`."""
        name = self.architecture.rotary
        module = getattr(self.model, name) if name else None
        rotary = Rotary(module, settings.visible_size, self.architecture.pairing) if name else None
        return (rotary,) * self.model.config.num_hidden_layers

    def named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the base model's forward by name."""
        return {**dict(zip(_parameters(type(self.model)), args, strict=False)), **kwargs}

    def warn_beyond_training(self, settings: SinkSettings) -> None:
        """Warn, once, when queries see more tokens than the texts the model was trained on have."""
        trained = getattr(self.model.config, "max_position_embeddings", None)
        if trained is not None and settings.visible_size > trained:
            logger.warning_once(
                f"attention_sink_size={settings.sink_size} and attention_sink_window_size={settings.window_size} let a "
                f"query see {settings.visible_size} tokens, but the model was trained on {trained}; choose a window of "
                f"at most {max(1, trained - settings.sink_size - 1)}."
            )


@cache
def _parameters(model_class: type) -> tuple[str, ...]:
    """Names of the arguments of a model's forward, in order."""
    return tuple(inspect.signature(model_class.forward).parameters)[1:]


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The decoder of `model` without head or adapter; TypeError when it is no Transformers model."""
    model = without_adapter(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a Transformers model, not {type(model).__name__}; load it with Transformers.")
    return model.base_model


def without_adapter(model: nn.Module) -> nn.Module:
    """The model inside a PEFT wrapper, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def injection_of(model: nn.Module) -> Injection:
    """The injection of `model`; ValueError when it has none."""
    base = base_model_of(model)
    if MARK not in base.__dict__:
        raise ValueError(
            f"model={type(model).__name__} has no attention sinks; load it with attention_sinks.AutoModelForCausalLM "
            "or call inject_attention_sinks(model) first."
        )
    return base.__dict__[MARK].injection
