"""What a checkpoint says of itself before its weights are read, and what is refused for it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .gguf_files import read_gguf_config
from .models.registry import architecture_of, check_type
from .quantised import check_packages

HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
"""Arguments of `from_pretrained` that say where a config is found."""


def check_checkpoint(name: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Check by its config that a checkpoint can be loaded and can stream.

    The config is read without the checkpoint's own code, even where the user trusts that. Nothing is checked where that
    is impossible, as in the folder of an adapter: loading will tell.

    Parameters
    ----------
    name : str or os.PathLike
        The checkpoint, as `find_gguf` names it.
    arguments : dict
        The keyword arguments of `from_pretrained`.

    Returns
    -------
    dict
        The arguments; with the config of a GGUF file, where reading it again would take seconds.

    Raises
    ------
    ImportError
        When a package is missing that its weights need.
    NotImplementedError
        When its architecture is not supported.
    ValueError
        When Transformers cannot read a GGUF file.
    """
    config = arguments.get("config")
    if config is None and arguments.get("gguf_file"):
        config = read_gguf_config(name, _where(arguments))
        architecture_of(config)
        changed = (arguments.keys() & config.to_dict().keys()) - {"dtype"}
        return arguments if changed else {**arguments, "config": config}
    if config is None:
        raw = read_raw_config(name, arguments)
        check_quantisation(name, raw, arguments)
        config = _config_of(name, raw, arguments)
    else:
        check_quantisation(name, config, arguments)
    if isinstance(config, PreTrainedConfig):
        architecture_of(config)
    return arguments


def check_quantisation(name: Any, config: Any, arguments: dict[str, Any]) -> None:
    """Check that the packages are installed which quantised weights need, those of a config and those asked for.

    Parameters
    ----------
    name : str or os.PathLike
        The checkpoint.
    config : dict or PreTrainedConfig or None
        Its config.
    arguments : dict
        The keyword arguments of `from_pretrained`.

    Raises
    ------
    ImportError
        When a package is missing.
    """
    raw = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    parts = [raw, raw.get("text_config")] if isinstance(raw, dict) else []
    own = [part.get("quantization_config") for part in parts if isinstance(part, dict)]
    check_packages(name, *own, arguments.get("quantization_config"))


def read_raw_config(name: Any, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config of a checkpoint as its file has it, or None when it has none that can be read."""
    try:
        raw: dict[str, Any] = PreTrainedConfig.get_config_dict(name, **_where(arguments))[0]
    except (OSError, ValueError):
        return None
    return raw


def _config_of(name: Any, raw: dict[str, Any] | None, arguments: dict[str, Any]) -> PreTrainedConfig | None:
    """Return the config of a checkpoint, or None when it needs code of its own; NotImplementedError for a new type."""
    if raw is None:
        return None
    check_type(raw.get("model_type"))
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False, **_where(arguments))
    except Exception:  # whatever it is, loading will meet it again, unless the checkpoint's own code knows better
        return None
    return config


def _where(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in HUB_ARGUMENTS if key in arguments}
