"""GGUF files read without waiting for their vocabularies, which make up nearly all of the time that reading takes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from transformers.utils import is_gguf_available

LONG = 1000
"""Arrays of more values than this belong to the vocabulary. A config has some for each layer at most."""

ARRAY, STRING = 9, 8
"""Numbers of these types in GGUF files."""

LENGTH = struct.Struct("<Q")
"""What stands before a string."""


@contextmanager
def long_arrays_skipped() -> Iterator[None]:
    """Let Transformers read GGUF files without their long arrays for the length of a block.

    Of a long array of strings, only the length is right: Transformers counts the words of the vocabulary. Where it
    reads a file without the package `gguf`, this changes nothing.
    """
    if not is_gguf_available():  # whoever reads the file says so
        yield
        return
    gguf: Any = import_module("gguf")
    plain: Any = gguf.GGUFReader

    class HeaderReader(plain):  # type: ignore[misc]  # it has no types
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type == ARRAY:
                kind, count = struct.unpack_from("<IQ", self.data, orig_offs)
                if count > LONG:
                    return self._skipped(int(orig_offs), kind, count)
            parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return parts

        def _skipped(self, start: int, kind: int, count: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if kind != STRING:
                width = np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)]).itemsize
                return 12 + count * width, [], [], [gguf.GGUFValueType(ARRAY), gguf.GGUFValueType(kind)]
            end, buffer = start + 12, memoryview(self.data)
            for _ in range(count):
                end += 8 + LENGTH.unpack_from(buffer, end)[0]
            return end - start, [b"\0"], [0] * count, [gguf.GGUFValueType.UINT8]  # bytes are read faster than strings

    gguf.GGUFReader = HeaderReader
    try:
        yield
    finally:
        gguf.GGUFReader = plain


@contextmanager
def strings_sliced_fast() -> Iterator[None]:
    """Let Transformers take the strings of a GGUF file from a plain view of it for the length of a block.

    It slices a `numpy.memmap`, which takes three times as long. Where it no longer does so, this changes nothing.
    """
    reader: Any = import_module("transformers.integrations.gguf.reader")
    plain: Any = getattr(reader, "_mapped", None)
    if plain is None:
        yield
        return
    reader._mapped = lambda path: memoryview(plain(path))
    try:
        yield
    finally:
        reader._mapped = plain
