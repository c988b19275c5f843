"""Where a model lies: a folder, a GGUF file or a repository of the hub. Config and tokenizer are read from there."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from ..gguf_files import find_gguf, read_gguf_config
from ..models.registry import check_type
from ..versions import tokenizers_read_gguf_themselves
from .gguf_header import long_arrays_skipped, strings_sliced_fast

CONFIG = "config.json"


@dataclass(frozen=True)
class Source:
    """Where one model lies.

    Parameters
    ----------
    name : str
        What the user calls it.
    place : str
        The folder, or the name of a repository of the hub.
    gguf_file : str or None, default None
        The name of the GGUF file in that folder.
    """

    name: str
    place: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` that say where the model is."""
        arguments = {"pretrained_model_name_or_path": self.place}
        return arguments if self.gguf_file is None else {**arguments, "gguf_file": self.gguf_file}

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine, at a path that the user has given."""
        return Path(self.place).is_dir()


def find_source(name: str) -> Source:
    """Return where the model `name` lies: a GGUF file, a folder, or else the hub.

    Raises
    ------
    FileNotFoundError
        When `name` is the path of nothing, or that of a folder without a config.
    ValueError
        When it is the path of what is no GGUF file, or one part of several.
    """
    path = Path(name).expanduser()
    place, arguments = find_gguf(str(path), {})
    if arguments:
        return Source(name, place, path.name)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            files = sorted(file.name for file in path.glob("*.gguf"))
            cure = f"give the path of a GGUF file in it, {files[0]!r} for example" if files else "give a model's folder"
            raise FileNotFoundError(f"{name!r} is a folder without {CONFIG}; {cure}.")
        return Source(name, str(path))
    if path.exists():
        raise FileNotFoundError(f"{name!r} is neither a folder nor a GGUF file; give the folder that it lies in.")
    if _looks_like_a_path(name):
        raise FileNotFoundError(f"{name!r} does not exist; give a model's folder, a GGUF file or a name on the hub.")
    return Source(name, name)


def _looks_like_a_path(name: str) -> bool:
    """Whether `name` cannot be that of a repository, which has one slash at most and begins with a letter or digit."""
    return name.count("/") > 1 or not name[:1].isalnum() or os.sep not in "/" and os.sep in name or name.endswith("/")


def read_config(source: Source) -> PreTrainedConfig:
    """Return the config of a model, without running code that may lie beside it.

    Raises
    ------
    OSError
        When there is none: a wrong name, no connection.
    ValueError
        When it has no `model_type` or is no config.
    NotImplementedError
        When Transformers does not know its type.
    """
    if source.gguf_file is not None:
        with long_arrays_skipped():
            return read_gguf_config(source.place, {"gguf_file": source.gguf_file})
    try:
        raw, _ = PreTrainedConfig.get_config_dict(source.place)
    except OSError as error:
        raise _not_found(source, error) from error
    if "model_type" not in raw:
        raise ValueError(f"the {CONFIG} of {source.name!r} has no model_type; add it, or give another model.")
    check_type(raw["model_type"])
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.place, trust_remote_code=False)
    except Exception as error:  # a field that is none, numbers that do not fit together
        raise ValueError(
            f"the {CONFIG} of {source.name!r} cannot be read ({error or type(error).__name__}); repair it, or give "
            "another model."
        ) from error
    return config


def _not_found(source: Source, error: OSError) -> OSError:
    """Return what is said of a config that cannot be read."""
    if source.is_local:
        return OSError(f"the {CONFIG} of {source.name!r} cannot be read ({error}); repair it, or give another model.")
    return OSError(
        f"{source.name!r} is no folder here, it is not in the cache of the hub, and the hub does not give it; check "
        "the name and the connection (HF_HUB_OFFLINE, too), or give the folder of a model."
    )


def read_tokenizer(source: Source) -> Any:
    """Return the tokenizer of a model; whatever goes wrong is an OSError with the reason."""
    is_fast = source.gguf_file is not None and tokenizers_read_gguf_themselves()
    try:
        with ExitStack() as readers:
            if is_fast:
                readers.enter_context(long_arrays_skipped())
                readers.enter_context(strings_sliced_fast())
            return AutoTokenizer.from_pretrained(**source.arguments, trust_remote_code=False)
    except Exception as error:  # files of strangers: missing, damaged, for code or packages that are not there
        raise OSError(f"no tokenizer can be read ({' '.join(str(error).split()):.300})") from error
