"""GGUF files: where one lies, whether it can be read, and what its config says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, GgufConfig, PreTrainedConfig
from transformers.utils import is_gguf_available

from .models.registry import check_type

SUFFIX = ".gguf"
MAGIC = b"GGUF"
"""The first bytes of every GGUF file."""

PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
"""How llama.cpp names the parts of a file that it has split."""


def find_gguf(name: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Say in the words of Transformers which GGUF file is meant: a folder or a repository, and `gguf_file`.

    Parameters
    ----------
    name : str or os.PathLike
        Name of a repository, a folder, or the path of a GGUF file alone.
    arguments : dict
        The keyword arguments of `from_pretrained`.

    Returns
    -------
    tuple
        The name and the arguments for Transformers, unchanged where no GGUF file is meant. A `gguf_file` on this
        machine is absolute: Transformers would look for weights in the working directory first.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is none of this format or one part of several, or two different files are named.
    """
    given = arguments.get("gguf_file")
    if _is_path_of_gguf(name):
        path = Path(name)
        if given is not None and Path(given).name != path.name:
            raise ValueError(
                f"gguf_file={given!r}, but pretrained_model_name_or_path={str(name)!r} is the path of another GGUF "
                "file; leave gguf_file out, or name the folder in place of the file."
            )
        name = str(path.parent)
    elif given:
        path = Path(name, arguments.get("subfolder") or "", given)
    else:
        return name, arguments
    _check_whole(path)
    if given and not Path(name).is_dir():  # a repository of the Hub
        return name, arguments
    _check_file(path)
    return name, {**arguments, "gguf_file": str(path.absolute())}


def _is_path_of_gguf(name: Any) -> bool:
    return isinstance(name, (str, PathLike)) and Path(name).suffix.lower() == SUFFIX and not Path(name).is_dir()


def _check_whole(path: Path) -> None:
    """Raise ValueError for one part of a split file: Transformers would make up the weights of the others."""
    if part := PART.search(path.name):
        raise ValueError(
            f"the GGUF file {path.name!r} is one of {int(part[1])} parts, which Transformers cannot read; join them "
            "with `llama-gguf-split --merge FIRST_PART WHOLE_FILE`, a program of llama.cpp, and load the whole file."
        )


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no GGUF file {str(path)!r}. Give the path of one; for one on the Hugging Face Hub, give its "
            "repository and gguf_file='….gguf'."
        )
    with path.open("rb") as file:
        begin = file.read(len(MAGIC))
    if begin != MAGIC:
        raise ValueError(
            f"{str(path)!r} is no GGUF file: it begins with {begin!r}, not with {MAGIC!r}. Download it again, or give "
            "the path of another file."
        )


def into_plain_weights(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments` with a config by which the weights of a GGUF file become those of an ordinary model.

    Without one, Transformers takes the model for quantised even where it has unpacked the weights, and refuses to cast
    or save it; where it can keep them packed, it downloads code for that. A `quantization_config` that the user gives
    stays.
    """
    if not arguments.get("gguf_file") or arguments.get("quantization_config") is not None:
        return arguments
    return {**arguments, "quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def naming_the_package(arguments: dict[str, Any]) -> Iterator[None]:
    """Make the ImportError of a missing package, raised in the block for a GGUF file, say how to install it."""
    try:
        yield
    except ImportError as error:
        if not arguments.get("gguf_file") or is_gguf_available():
            raise
        raise ImportError(
            f"gguf_file={arguments['gguf_file']!r} needs the package gguf; call `pip install 'gguf>=0.10'`."
        ) from error


def read_gguf_config(name: Any, found: dict[str, Any]) -> PreTrainedConfig:
    """Read the config that the metadata of a GGUF file amounts to.

    Parameters
    ----------
    name : str or os.PathLike
        The folder or the repository.
    found : dict
        `gguf_file`, and the other arguments of `from_pretrained` that say where it is found.

    Raises
    ------
    ImportError
        When the package that reads such files is missing.
    NotImplementedError
        When this library and Transformers do not know its type.
    ValueError
        When Transformers cannot read the file.
    """
    try:
        with naming_the_package(found):
            raw, _ = PreTrainedConfig.get_config_dict(name, **found)
    except (ImportError, OSError):  # a package is missing, or the file is not on the Hub; the message says which
        raise
    except Exception as error:  # the readers of GGUF raise whatever the bytes lead them to
        raise ValueError(
            f"gguf_file={found['gguf_file']!r} cannot be read by Transformers {transformers.__version__}: {error} Use "
            "the checkpoint from which the file was made or, if it may be damaged, download it again."
        ) from error
    check_type(raw["model_type"])
    config: PreTrainedConfig = AutoConfig.for_model(**raw)
    return config
