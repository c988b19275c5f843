"""The schema of what a file says about a chat, and what it is to a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import GenerationConfig

from ..cache.schema import Record

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class ChatState(Record):
    """What `StreamingChat.save` says of a chat besides its tensors."""

    kind: Literal["StreamingChat"]
    cache: dict[str, Any]
    unfed: Annotated[list[Tokens], Field(fail_fast=True)] | None
    system: str | None
    chat_template: str | None
    turn: Tokens
    generation_config: dict[str, Any]


def generation_config_of(values: dict[str, Any]) -> GenerationConfig:
    """Return the config that has these values.

    Raises
    ------
    ValueError
        When there is none.
    """
    if taken := [name for name in values if hasattr(GenerationConfig, name)]:
        raise ValueError(f"holds a generation config with a {taken[0]!r:.80}, which is no setting; use an intact copy.")
    try:
        return GenerationConfig.from_dict(values)
    except Exception as error:  # Transformers says nothing about what it may be
        raise ValueError(
            f"holds a generation config that Transformers refuses ({error!r:.200}); pass generation_config."
        ) from error


def check_unfed(unfed: list[list[int]] | None, batch_size: int, vocabulary: int) -> None:
    """Raise ValueError unless `unfed` has tokens of the vocabulary for each row of a cache, which may have none."""
    if unfed is None:
        return
    if len(unfed) != batch_size and batch_size > 0:
        raise ValueError(f"holds {len(unfed)} conversations, but a cache of {batch_size} rows; use an intact copy.")
    if any(token >= vocabulary for row in unfed for token in row):
        raise ValueError(f"holds a token that is not among the model's {vocabulary}; use an intact copy.")
