"""The header of a safetensors file: what is said about its tensors, and where they are."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, BinaryIO

import torch
from pydantic import Field, TypeAdapter, ValidationError

from .schema import Record
from .strict_json import parse

MOST_BYTES = 2**24
"""The longest header. That of a chat has some kilobytes."""

MOST_NUMBERS = 2**48
"""The most numbers that a tensor may seem to have where a dimension of 0 leaves it with none."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
}

Natural = Annotated[int, Field(ge=0)]


class Entry(Record):
    """What the header says about one tensor."""

    dtype: str
    shape: Annotated[list[Natural], Field(max_length=8)]
    data_offsets: Annotated[list[Natural], Field(min_length=2, max_length=2)]

    def tensor(self, content: bytearray) -> torch.Tensor:
        """Return the tensor, which shares the memory of `content`, all that follows the header."""
        dtype = DTYPES[self.dtype]
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=dtype, device="cpu")
        flat = torch.frombuffer(content, dtype=dtype, count=prod(self.shape), offset=self.data_offsets[0])
        return flat.reshape(self.shape)


ENTRIES = TypeAdapter(dict[str, Entry])


def damaged(why: str) -> ValueError:
    """Return the error of a file that is not as `save` has written it."""
    return ValueError(
        f"is truncated, altered or no safetensors file ({why:.200}); give a file that save() has written."
    )


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header of `file`, which has `size` bytes, and return its metadata and what it says of each tensor.

    Raises
    ------
    ValueError
        When this is no header of a safetensors file.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_BYTES):
        raise damaged("its header has no length that is possible")
    text = file.read(length).rstrip(b" ")
    try:
        header = parse(text.decode())
    except ValueError as error:
        raise damaged(str(error)) from error
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not (text.startswith(b"{") and text.endswith(b"}")):
        raise damaged("its header is no header")
    return metadata, header


def entries_of(header: dict[str, Any], size: int) -> dict[str, Entry]:
    """Return what `header` says of each tensor by name, when the tensors fill `size` bytes without a gap.

    Raises
    ------
    ValueError
        When they do not, or something is said that is no fact of a tensor.
    """
    try:
        entries = ENTRIES.validate_python(header)
    except ValidationError:
        raise damaged("its header says what no tensor is") from None
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.data_offsets):
        first, last = entry.data_offsets
        width = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else 0
        numbers = prod(max(1, dimension) for dimension in entry.shape)
        fits = width and first == end and first % width == 0 and last - first == prod(entry.shape) * width
        if not fits or numbers > MOST_NUMBERS:
            raise damaged("its tensors do not fill it")
        end = last
    if end != size:
        raise damaged("its tensors do not fill it")
    return entries
