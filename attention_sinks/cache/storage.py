"""One safetensors file for tensors and what they mean, with a checksum, which is written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

FORMAT = "attention_sinks"
VERSION = "1"


def write_file(path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write `tensors` and `state`, which JSON can hold, to a temporary file and rename that to `path`.

    Raises
    ------
    OSError
        When the file cannot be written. What `path` held before is then untouched.
    """
    path = Path(path)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "state": text, "sha256": _checksum(text, tensors)}
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `write_file` wrote: tensors on the CPU, and the state.

    Raises
    ------
    OSError
        When there is no such file or it cannot be read.
    ValueError
        When it was not written by `write_file`, by a later version of it, or has been truncated or altered since.
    """
    path = Path(path)
    with open(path, "rb"):
        pass  # a missing file, a folder or one without permission is an OSError that names it
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} was not saved by attention_sinks; give a file that save() has written.")
            if metadata.get("version") != VERSION:
                raise ValueError(
                    f"{path} has format version {metadata.get('version')}, this library reads version {VERSION}; use "
                    "the version of attention_sinks that wrote it."
                )
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({error}); give a file that save() has written."
        ) from error
    text = metadata.get("state", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise ValueError(f"{path} has been altered since it was saved: its checksum is wrong; use an intact copy.")
    return tensors, json.loads(text)


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    checksum = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
