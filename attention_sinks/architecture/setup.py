"""A setup is what was injected into a model: settings and the facts of its architecture, nothing about any stream."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..plan.reach import Reach
from ..plan.table import LayerTable
from ..positions.frequencies import LongTextFrequencies
from ..positions.rotary import Rotary, Source, source_of
from ..positions.schemes import Position
from ..settings import CacheDtype, SinkSettings
from .layer_kinds import LayerKind
from .modules import base_model_of
from .spec import Architecture
from .tables import Hold, TableKey, Tables
from .trained_length import trained_length

logger = logging.get_logger(__name__)

MARK = "_attention_sinks"
"""The attribute under which a base model keeps its `patching.InstalledPatches`, and in these its `Setup`."""

COPY_MARK = "_attention_sinks_of_copy"
"""The attribute under which a shallow copy of a base model keeps its own `Setup`."""


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Warn, unless it has been done lately. Transformers' own `warning_once` keeps every message for ever."""
    logger.warning(message)


@dataclass(frozen=True)
class Setup:
    """The settings and the facts of one injected base model.

    Parameters
    ----------
    model : PreTrainedModel
        The base model, without head or adapter.
    settings : SinkSettings
        The defaults for caches of this model.
    architecture : Architecture
        The model's entry in the table of architectures.

    Attributes
    ----------
    tables : Tables
        The tables made so far, by S, W, prefill and number of layers.
    sources : list of Source
        Where in the model the tables' frequencies were read.
    config_as_read : dict
        What the model's config was when the tables were made.
    """

    model: PreTrainedModel
    settings: SinkSettings
    architecture: Architecture
    _kinds: dict[int, tuple[LayerKind, ...]] = field(default_factory=dict, repr=False, compare=False)
    tables: Tables = field(default_factory=Tables, repr=False, compare=False)
    sources: list[Source] = field(default_factory=list, repr=False, compare=False)
    config_as_read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.notice_changes()

    def notice_changes(self) -> None:
        """Forget what was read from the model where somebody has changed its config or its frequencies since."""
        now, known = vars(self.model.config), self.config_as_read
        if "num_hidden_layers" in now:  # tables and kinds know it
            known["num_hidden_layers"] = now["num_hidden_layers"]
        if known == now and all(map(Source.is_current, self.sources)):
            return
        self.tables.clear()
        self.sources.clear()
        self._kinds.clear()
        for name in ("has_states", "native_window"):
            self.__dict__.pop(name, None)
        known.clear()
        known.update(
            {name: deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in now.items()}
        )

    def fit(self, settings: SinkSettings) -> SinkSettings:
        """Return `settings` as this model can use them.

        Where all layers slide natively, W is cut to what they see, with one warning.

        Raises
        ------
        ValueError
            When a query would see more tokens than the model has positions for.
        NotImplementedError
            When the model or its device cannot have a cache of this dtype.
        """
        self._check_cache_dtype(settings.cache_dtype)
        if self.native_window is not None and settings.visible_size > self.native_window:
            settings = self._cut(settings, self.native_window)
        limit = self.architecture.limit(self.model.config)
        if limit is not None and settings.visible_size > limit.tokens:
            raise ValueError(
                f"attention_sink_size={settings.sink_size} and attention_sink_window_size={settings.window_size} let a "
                f"query see {settings.visible_size} tokens, but {self.model.config.model_type} can have at most "
                f"{limit.tokens}: {limit.reason}; choose a window of at most {limit.tokens - settings.sink_size - 1}."
            )
        return settings

    def _check_cache_dtype(self, name: CacheDtype) -> None:
        """Refuse a cache of the dtype `name` where it would be wrong."""
        if name == "int8-int4" and self.architecture.rotated == "values":
            raise NotImplementedError(
                f"attention_sink_cache_dtype={name!r}: the latent attention of {self.model.config.model_type} makes "
                "keys and values from the same numbers, for which 4 bits are too few; choose 'int8'."
            )
        if name != "auto" and self.model.device.type == "mps":
            raise NotImplementedError(
                f"attention_sink_cache_dtype={name!r} needs angles in float64, which this device (mps) does not have; "
                "leave it out, or move the model to another device."
            )

    def _cut(self, settings: SinkSettings, native: int) -> SinkSettings:
        """Return `settings` with a window such that a query sees at most `native` tokens."""
        window = native - settings.sink_size - 1
        if window < 1:
            raise ValueError(
                f"attention_sink_size={settings.sink_size} leaves no window: every layer of this model sees {native} "
                f"tokens at most (config.sliding_window); choose at most {native - 2} sinks."
            )
        _warn_once(
            f"attention_sink_window_size={settings.window_size} is cut to {window}: every layer of this model sees "
            f"{native} tokens at most (config.sliding_window), sinks and the current token included."
        )
        return replace(settings, window_size=window)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer.

        It is read again when the number of layers changes, which it does while `generate` lets a model exit early.
        """
        config = self.model.config
        kinds = self._kinds.get(config.num_hidden_layers)
        if kinds is None:
            self._kinds.clear()
            kinds = self._kinds[config.num_hidden_layers] = self.architecture.kinds(config)
        return kinds

    @cached_property
    def has_states(self) -> bool:
        """Whether any layer keeps states that are not per token: linear attention, convolutions, state spaces."""
        return any(kind.states for kind in self.kinds)

    @cached_property
    def native_window(self) -> int | None:
        """How many tokens the model sees natively, if all its attention slides; else None.

        The sliding layers of such a model get the sinks.
        """
        windows = [kind.window or 0 for kind in self.kinds if kind.attends]
        return min(windows) if all(windows) and not any(kind.chunk for kind in self.kinds) else None

    def layer_table(self, settings: SinkSettings) -> LayerTable:
        """Return the table of the layers that the model runs now, under `settings`."""
        table = self.known_table(settings)
        if table is None:
            table = LayerTable(settings.reach, self.reaches(settings), self.positions(settings))
            self._note_sources(table)
            table = self.tables.add(self._key_of(settings), table)
        return table

    def _note_sources(self, table: LayerTable) -> None:
        """Note where in the model the frequencies of `table` were read, each place once."""
        for frequencies in {position.frequencies for position in table.positions if isinstance(position, Rotary)}:
            source = source_of(self.model, frequencies)
            if source is not None and not any(map(source.is_the_place_of, self.sources)):
                self.sources.append(source)

    def known_table(self, settings: SinkSettings) -> LayerTable | None:
        """Return the same if it need not be made."""
        return self.tables.known.get(self._key_of(settings))

    def hold_table(self, settings: SinkSettings) -> Hold:
        """Return what a cache must have as long as it lives, so that its table is not forgotten."""
        return self.tables.hold(self._key_of(settings))

    def _key_of(self, settings: SinkSettings) -> TableKey:
        return settings.sink_size, settings.window_size, settings.prefill, self.model.config.num_hidden_layers

    def reaches(self, settings: SinkSettings) -> tuple[Reach | None, ...]:
        """Return what the queries of each layer see under `settings`; None for a layer without attention."""
        with_sinks = settings.reach
        return tuple(self._reach(kind, with_sinks) for kind in self.kinds)

    def _reach(self, kind: LayerKind, with_sinks: Reach) -> Reach | None:
        if not kind.attends:
            return None
        if kind.window is None or self.native_window is not None:
            return with_sinks
        return Reach(0, kind.window - 1, chunked=kind.chunk)

    def positions(self, settings: SinkSettings) -> tuple[Position, ...]:
        """Return how each layer knows positions under `settings`."""
        scheme = self.architecture.scheme(self.model.config)
        return scheme.of_layers(self.model, settings.visible_size)

    def warn_beyond_training(self, settings: SinkSettings) -> None:
        """Warn, once, when queries see so many tokens that the model does not compute what it was trained for."""
        seen = (
            f"attention_sink_size={settings.sink_size} and attention_sink_window_size={settings.window_size} let a "
            f"query see {settings.visible_size} tokens"
        )
        trained = trained_length(self.model.config)
        if trained is not None and settings.visible_size > trained:
            _warn_once(
                f"{seen}, but the model was trained on {trained}; choose a window of at most "
                f"{max(1, trained - settings.sink_size - 1)}."
            )
        for position in self.layer_table(settings).positions:
            frequencies = position.frequencies.holder if isinstance(position, Rotary) else None
            if isinstance(frequencies, LongTextFrequencies):
                _warn_once(
                    f"{seen}, for which rope_type={frequencies.rope_type!r} has other frequencies than for up to "
                    f"{frequencies.beyond}. They are used from the first token on, so short texts differ from plain "
                    "Transformers, too; where that matters, choose a window of at most "
                    f"{max(1, frequencies.beyond - settings.sink_size - 1)}."
                )


def setup_of(model: nn.Module) -> Setup:
    """Return the setup of `model`.

    A shallow copy of a model, as `torch.nn.parallel.replicate` and accelerate's `compile_regions` make them, gets a
    setup of its own when it is first asked for.

    Raises
    ------
    ValueError
        When `model` has no attention sinks, or is a shallow copy of a model that has lost them.
    """
    base_model = model if isinstance(model, PreTrainedModel) and MARK in model.__dict__ else base_model_of(model)
    if MARK not in base_model.__dict__:
        raise ValueError(
            f"model={type(model).__name__} has no attention sinks; load it with attention_sinks.AutoModelForCausalLM "
            "or call inject_attention_sinks(model) first."
        )
    setup: Setup = base_model.__dict__[MARK].setup
    return setup if setup.model is base_model else _setup_of_copy(base_model, setup)


def _setup_of_copy(copy: PreTrainedModel, original: Setup) -> Setup:
    """Return the setup of a shallow copy, whose layers the original may share."""
    if not hasattr(type(original.model), "_plain_class"):
        raise ValueError(
            f"model={type(copy).__name__} is a shallow copy of a model that has lost its attention sinks since; call "
            "inject_attention_sinks with that model, or copy it again."
        )
    setup: Setup | None = copy.__dict__.get(COPY_MARK)
    if setup is None or setup.model is not copy:
        setup = copy.__dict__[COPY_MARK] = Setup(copy, original.settings, original.architecture)
    return setup
