"""Configs and models of old types, which are loaded when somebody asks for a config of their type.

Until then something stands in Transformers' table for the config class. So `import attention_sinks` loads no modelling
code for types that most users never meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import transformers
from transformers import AutoConfig


class ConfigOnDemand(type):
    """The type of what stands for a config class: whoever uses it gets the class."""

    model_type: str
    module: str

    def __new__(cls, name: str, model_type: str, module: str) -> ConfigOnDemand:
        """Return what stands for the config class `name` of `module`, a path within this package."""
        return super().__new__(cls, name, (), {"model_type": model_type, "module": f"{__package__}.{module}"})

    def __init__(cls, name: str, model_type: str, module: str) -> None:
        super().__init__(name, (), {})

    def load(cls) -> Any:
        """Return the config class. Its module has put it and its models into the tables of Transformers."""
        return getattr(import_module(cls.module), cls.__name__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.load()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.load(), name)


def register(config_class: Any, *, conversion: Iterable[Any] = (), **models: Any) -> None:
    """Register a config class and its models with the Auto classes of Transformers.

    Parameters
    ----------
    config_class : type
        The config class; its `model_type` is the name of the type.
    conversion : iterable, optional
        How Transformers turns the weights of a checkpoint into those of the model.
    **models : type
        Name of an Auto class -> the model class that it finds by the config.
    """
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for auto_class, model in models.items():
        getattr(transformers, auto_class).register(config_class, model, exist_ok=True)
    if conversion:
        from transformers.conversion_mapping import register_checkpoint_conversion_mapping

        register_checkpoint_conversion_mapping(config_class.model_type, list(conversion), overwrite=True)
