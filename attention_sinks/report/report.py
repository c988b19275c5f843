"""`ModelReport`: what a model can do with attention sinks, by its config and tokenizer alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import transformers
from transformers import PreTrainedConfig

from ..architecture.layer_kinds import LayerKind
from ..architecture.setup import Setup, setup_of
from ..architecture.trained_length import trained_length
from ..chat.template import ChatTemplate
from ..inject import inject_attention_sinks
from ..models.facts import implementations_of, notes_of, positions_of
from ..models.registry import architecture_of
from ..plan.reach import Reach
from .footprint import Footprint, footprints
from .shapes import cache_of_one_token, model_without_weights
from .source import Source, read_config, read_tokenizer

USUAL_WINDOW = 1020
"""W where nothing else is asked for, as everywhere in this package."""


@dataclass(frozen=True)
class ModelReport:
    """What is known of a model that streams.

    Attributes
    ----------
    source : Source
        Where it lies.
    model_type : str
        `config.model_type` of its text decoder.
    transformers : str
        The installed release, of which the report is true.
    positions : str
        How its layers know positions.
    attention : list of str
        The attention implementations with which it streams.
    notes : list of str
        What else is particular to its architecture.
    layers : dict
        What a layer keeps -> the indices of the layers that keep it.
    sink_size : int
        S, with which everything here was found.
    largest_window : int or None
        The largest W that is of use; None when any is.
    largest_window_reason : str
        Why there should be no more.
    footprints : dict
        Name of a dtype, of the model or of a cache that rounds -> the bytes of one conversation.
    chat_problem : str or None
        Why its chat template cannot stream; None when it can.
    parameters : int
        How many weights it has.
    """

    source: Source
    model_type: str
    transformers: str
    positions: str
    attention: list[str]
    notes: list[str]
    layers: dict[str, list[int]]
    sink_size: int
    largest_window: int | None
    largest_window_reason: str
    footprints: dict[str, Footprint]
    chat_problem: str | None
    parameters: int

    @property
    def window(self) -> int:
        """The window to begin with: the usual one, or the largest where that is smaller."""
        return USUAL_WINDOW if self.largest_window is None else min(USUAL_WINDOW, self.largest_window)

    def as_data(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self) | {"window": self.window}


def report_on(source: Source, sink_size: int = 4) -> ModelReport:
    """Return what is known of the model that lies at `source`. No weights are read.

    Parameters
    ----------
    source : Source
        Where its config and its tokenizer are.
    sink_size : int, default 4
        S, the number of first tokens that are never evicted.

    Raises
    ------
    NotImplementedError
        When the model cannot stream. The message says why and what similar types can.
    OSError, ValueError
        When its config cannot be read, or leaves no window beside so many sinks.
    """
    return report_and_tokenizer(source, sink_size)[0]


def report_and_tokenizer(source: Source, sink_size: int = 4) -> tuple[ModelReport, Any]:
    """Return the same report, and the tokenizer that has been read for it, None where it cannot be."""
    config = read_config(source)
    architecture_of(config)  # whether it streams comes first: what a tokenizer cannot do is no error
    tokenizer, problem = None, None
    try:
        tokenizer = read_tokenizer(source)
        ChatTemplate(tokenizer)
    except (OSError, ValueError) as error:
        problem = str(error)
    return describe(source, config, sink_size, problem), tokenizer


def describe(source: Source, config: PreTrainedConfig, sink_size: int, chat_problem: str | None) -> ModelReport:
    """Return the report on a model with `config`, of which the tokenizer has been looked at before."""
    architecture = architecture_of(config)
    decoder = config.get_text_config(decoder=True)
    model = inject_attention_sinks(model_without_weights(config), sink_size, 1)
    setup = setup_of(model)
    largest, reason = largest_window(setup)
    return ModelReport(
        source,
        decoder.model_type,
        transformers.__version__,
        positions_of(architecture, decoder),
        implementations_of(architecture, config),
        notes_of(architecture, decoder),
        layers_by_content(setup),
        sink_size,
        largest,
        reason,
        footprints(setup, cache_of_one_token(model)),
        chat_problem,
        sum(parameter.numel() for parameter in model.parameters()),
    )


def largest_window(setup: Setup) -> tuple[int | None, str]:
    """Return the largest window that is of use to a model, None for any, and why there should be no more."""
    config, found = setup.model.config, []
    if setup.native_window is not None:
        found.append((setup.native_window, f"every layer sees {setup.native_window} tokens at most"))
    if (limit := setup.architecture.limit(config)) is not None:
        found.append((limit.tokens, limit.reason))
    if (trained := trained_length(config)) is not None:
        found.append((trained, f"the model was trained on texts of {trained} tokens"))
    if not found:
        return None, "the config names no length that the model was trained on"
    tokens, reason = min(found)
    return tokens - setup.settings.sink_size - 1, reason


def layers_by_content(setup: Setup) -> dict[str, list[int]]:
    """Return what layers keep, in words, each with the indices of the layers that keep it."""
    layers = defaultdict(list)
    for index, (kind, reach) in enumerate(zip(setup.kinds, setup.reaches(setup.settings), strict=True)):
        layers[_content(kind, reach, setup.native_window)].append(index)
    return dict(layers)


def _content(kind: LayerKind, reach: Reach | None, native_window: int | None) -> str:
    """Say what one layer keeps."""
    if reach is None:
        return "states instead of keys" if kind.states else "nothing"
    if not kind.stores:
        return "nothing: it reads the keys of an earlier layer"
    own = kind.window if native_window is None else None
    keys = "sinks and window" if own is None else f"chunks of {own} tokens" if kind.chunk else f"its last {own} tokens"
    return f"{keys}, and states" if kind.states else keys
