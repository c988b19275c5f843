"""A checkpoint whose weights do not fit its model is an error that names them, not a model of random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HEADS = ("classifier.", "lm_head.", "qa_outputs.", "score.")
"""How the weights of heads begin; a checkpoint may have a head its model lacks."""

NEW_HEADS = tuple(head for head in HEADS if head != "lm_head.")
"""Heads a model may have that its checkpoint lacks, to be trained; a language model without its head is none."""

SHOWN = 3


class CheckedLoading:
    """Mixed in before a model class: `from_pretrained` fails where Transformers only logs a report.

    Every weight of the decoder must be in the checkpoint, and every weight of the checkpoint must have a place. Heads
    are excepted: one that the checkpoint has and the model lacks is left out, one for classification or question
    answering that the checkpoint lacks is new, as everywhere in Transformers.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any):
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        check_keys(info["missing_keys"], info["unexpected_keys"], cls.__name__, pretrained_model_name_or_path)
        return (model, info) if wants_info else model


def check_keys(missing: Iterable[str], unexpected: Iterable[str], model: str, checkpoint: Any) -> None:
    """Check what a checkpoint lacks and what it has to spare.

    Parameters
    ----------
    missing, unexpected : iterable of str
        Names of weights, as in the loading info of Transformers.
    model : str
        Name of the model class.
    checkpoint : str or os.PathLike
        What was loaded.

    Raises
    ------
    ValueError
        Naming the first of the weights that do not fit.
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
