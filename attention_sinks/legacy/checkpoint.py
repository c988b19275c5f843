"""Refuse a checkpoint whose weights do not fit its model, where Transformers would load random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HEADS = ("classifier.", "lm_head.", "qa_outputs.", "score.")
"""Prefixes of the weights of heads. A checkpoint may have a head that its model lacks."""

NEW_HEADS = tuple(head for head in HEADS if head != "lm_head.")
"""Prefixes of heads that a model may have and its checkpoint may lack, because they are trained afterwards."""

SHOWN = 3
"""How many weights of each kind an error names."""


class CheckedLoading:
    """Mixed in before a model class, it makes `from_pretrained` fail where Transformers only logs a report.

    Every weight of the decoder must be in the checkpoint, and every weight of the checkpoint must have a place. Heads
    are exempt, as everywhere in Transformers: a head that only the checkpoint has is left out, and a head for
    classification or question answering that only the model has gets new weights.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Transformers does; ValueError when its weights do not fit."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(  # type: ignore[misc]  # a class of Transformers comes next
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        check_keys(info["missing_keys"], info["unexpected_keys"], cls.__name__, pretrained_model_name_or_path)
        return (model, info) if wants_info else model


def check_keys(missing: Iterable[str], unexpected: Iterable[str], model: str, checkpoint: Any) -> None:
    """Check the weights that only the model or only the checkpoint has.

    Parameters
    ----------
    missing, unexpected : iterable of str
        Names of weights that the checkpoint lacks or that the model lacks, from the loading info of Transformers.
    model : str
        Name of the model class.
    checkpoint : str or os.PathLike
        The checkpoint that was loaded.

    Raises
    ------
    ValueError
        When weights do not fit. The message names the first of them.
    """
    missing = sorted(key for key in missing if not key.startswith(NEW_HEADS))
    unexpected = sorted(key for key in unexpected if not key.startswith(HEADS))
    problems = [
        f"{kind} weights: {', '.join(keys[:SHOWN])} ({len(keys)} in all)"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if problems:
        raise ValueError(
            f"the checkpoint {str(checkpoint)!r} does not fit {model}; {'; '.join(problems)}. Use a complete "
            "checkpoint of this architecture, or rename its weights with key_mapping={pattern: replacement}."
        )
