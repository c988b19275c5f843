"""One safetensors file for tensors and what they mean, with a checksum, which is written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from .files import naming, reading, replace_file
from .header import MOST_BYTES, damaged, entries_of, read_header
from .strict_json import parse

FORMAT = "attention_sinks"
VERSION = "1"
METADATA = {"format", "version", "state", "sha256"}


def write_file(path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write `tensors` and `state`, which JSON can hold, to the file at `path` as a whole.

    Raises
    ------
    OSError
        When the file cannot be written. What `path` held before is then untouched.
    ValueError
        When `state` holds what cannot be loaded again: NaN, half a character, or too much.
    """
    with naming(path):
        content = encode(tensors, state)
    replace_file(Path(path), content)


def encode(tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> bytes:
    """Return the content of a file with `tensors` and `state`, which JSON can hold.

    Raises
    ------
    ValueError
        When `state` holds what cannot be loaded again.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "state": text, "sha256": checksum_of(text, tensors)}
    content = save(tensors, metadata)
    _check_can_be_loaded(text, header_size=int.from_bytes(content[:8], "little"))
    return content


def _check_can_be_loaded(text: str, header_size: int) -> None:
    """Raise ValueError when `read_file` would refuse a file with this state and a header of this size."""
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(
            f"would hold what cannot be loaded again ({error!s:.200}); use other values in the generation config."
        ) from error
    if header_size > MOST_BYTES:
        raise ValueError(
            f"would hold {header_size} bytes besides its tensors, more than the {MOST_BYTES} that can be loaded again; "
            "use a shorter system prompt or chat template."
        )


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `write_file` wrote: tensors on the CPU, and the state. Every byte is read once and then checked.

    Raises
    ------
    OSError
        When there is no such file, it cannot be read, or it is a folder, a FIFO, a device or a socket.
    ValueError
        When it was not written by `write_file`, by a later version of it, or has been truncated or altered since.
    """
    path = Path(path)
    with reading(path) as (file, size), naming(path):
        return decode(file, size)


def decode(file: BufferedReader | BytesIO, size: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `encode` was given: tensors on the CPU, and the state. `file`, of `size` bytes, stands at its start.

    Raises
    ------
    ValueError
        When `encode` of this version has not made these bytes.
    """
    metadata, header = read_header(file, size)
    _check_origin(metadata)
    entries = entries_of(header, size - file.tell())
    content = bytearray(size - file.tell())
    if file.readinto(content) < len(content):
        raise damaged("it has become shorter")
    tensors = {name: entry.tensor(content) for name, entry in entries.items()}
    text = metadata["state"]
    if metadata["sha256"] != checksum_of(text, tensors):
        raise ValueError("has been altered since it was saved: its checksum is wrong; use an intact copy.")
    return tensors, _state_of(text)


def decode_state(file: BufferedReader | BytesIO, size: int) -> tuple[dict[str, Any], str]:
    """Return the state in `file` and the checksum that it claims, of which nothing is checked. No tensor is read.

    Raises
    ------
    ValueError
        When this is not the header of a file that `encode` of this version has made.
    """
    metadata, _ = read_header(file, size)
    _check_origin(metadata)
    return _state_of(metadata["state"]), metadata["sha256"]


def _state_of(text: str) -> dict[str, Any]:
    """Return the state that `text` says."""
    try:
        state = parse(text)
    except ValueError as error:
        raise ValueError(f"holds a state that save() does not write ({error}); use an intact copy.") from error
    if not isinstance(state, dict):
        raise ValueError("holds a state that save() does not write; use an intact copy.")
    return state


def _check_origin(metadata: dict[str, Any]) -> None:
    """Raise an error unless `metadata` is that of a file which this version can read."""
    if metadata.get("format") != FORMAT:
        raise ValueError("was not saved by attention_sinks; give a file that save() has written.")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"has format version {str(metadata.get('version')):.80}, this library reads version {VERSION}; use the "
            "version of attention_sinks that wrote it."
        )
    if metadata.keys() != METADATA or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its metadata are not those of a saved file")


def checksum_of(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """Return the checksum of `text` and of names, dtypes, shapes and numbers of `tensors`."""
    checksum = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
