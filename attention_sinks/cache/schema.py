"""The schema of what a file says about a cache. All that `load` does with it relies on this."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..settings import CacheDtype, Prefill

Size = Annotated[int, Field(ge=0, le=2**31)]
"""A number of sinks or of other things in memory."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of tokens or columns, which no stream exceeds: they would take centuries."""

Counts = Annotated[list[Count], Field(fail_fast=True)]

Columns = Annotated[str, Field(pattern=r"^0x[0-9a-f]+$")]
"""A set of bits, one for each of the last columns."""

Seen = Annotated[tuple[Size, Size, bool, bool], Field(strict=False)]
"""S, W, dense and chunked of one layer. JSON has a list where Python has a tuple."""


class Record(BaseModel):
    """A part of what a file says: it has these fields, of these types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Fingerprint(Record):
    """What `fingerprint` says of a model."""

    config: dict[str, Any]
    weights: dict[str, str]


class Rows(Record):
    """Where the rows of a batch stand in their streams."""

    seen: Counts
    base: Counts
    floor: Counts
    remembered: Count
    tokens: Annotated[list[Columns], Field(fail_fast=True)]


class CacheState(Record):
    """What a snapshot says of a cache besides its tensors."""

    kind: Literal["AttentionSinkKVCache"]
    settings: Annotated[tuple[Size, Size, Prefill], Field(strict=False)]
    cache_dtype: CacheDtype = "auto"
    layers: Annotated[list[Seen | None], Field(fail_fast=True)]
    model: Fingerprint
    columns: Count
    rows: Rows | None


RecordT = TypeVar("RecordT", bound=Record)


def checked(schema: type[RecordT], state: dict[str, Any]) -> RecordT:
    """Return `state` as a record of its own kind.

    Raises
    ------
    ValueError
        When it is of another kind, or a field is missing, unknown, of another type or out of range.
    """
    (name,) = get_args(schema.model_fields["kind"].annotation)  # every schema names its kind
    if state.get("kind") != name:
        raise ValueError(f"holds no {name} but a {str(state.get('kind')):.80}; use load() of the class that saved it.")
    try:
        return schema.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"holds a {name} that save() does not write (state.{where:.200}: {first['msg']:.200}); use an intact copy."
        ) from None
