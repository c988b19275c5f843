"""Check whether a model streams right with the installed Transformers.

New releases often change what this library depends on. A short text through a tiny cache shows most such changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .architecture.modules import base_model_of, without_adapter
from .architecture.setup import Setup
from .cache.cache import AttentionSinkKVCache
from .models.registry import architecture_of
from .patching import InstalledPatches, install, installed_in, restore, uninstall
from .settings import SinkSettings
from .versions import NEWEST_TRANSFORMERS

logger = logging.get_logger(__name__)

SINKS, WINDOW = 2, 4
"""S and W of the check."""

STEPS = 4
"""How many single tokens are fed after a text that just fits into the cache."""

EXACT, ROUNDED = 1e-3, 0.1
"""Allowed differences for float32, and for half precision or quantised weights, as a share of the values' spread.

SmolLM2-135M in bfloat16 differs from itself by 0.04. A wrong distance of 1 between queries and sinks changes it by 0.2,
and an ignored mask by 1. Quantised weights may round activations by what a call holds: with the 8 bits of bitsandbytes,
the same model without attention sinks differs from itself by 0.1 to 0.2. How much that is comes on top."""


@dataclass(frozen=True)
class Verification:
    """The findings of `verify_attention_sinks`.

    Attributes
    ----------
    model_type : str
        `config.model_type` of the model's decoder.
    transformers : str
        The installed version of Transformers.
    differences : dict
        Name of a comparison -> the largest difference of any token, as a share of the spread of its values. For models
        in half precision or with quantised weights, it is the median over the tokens.
    tolerance : float
        The largest difference that is allowed. With quantised weights, it includes how much the model without
        attention sinks differs from itself when a text is cut short.
    error : Exception or None
        The exception that a call raised. The comparisons after that call are then missing.
    """

    model_type: str
    transformers: str
    differences: dict[str, float]
    tolerance: float
    error: Exception | None = None

    @property
    def agrees(self) -> bool:
        """Whether everything was compared and no difference is too large."""
        return self.error is None and not self.wrong

    @property
    def wrong(self) -> dict[str, float]:
        """The differences that are too large."""
        return {name: value for name, value in self.differences.items() if not value <= self.tolerance}

    def __str__(self) -> str:
        verdict = "streams right" if self.agrees else "does not stream right"
        lines = [f"{self.model_type} {verdict} with transformers {self.transformers} (allowed: {self.tolerance:.0e})"]
        lines += [f"  {value:8.1e}  {name}" for name, value in self.differences.items()]
        if self.error is not None:
            lines.append(f"  raised    {type(self.error).__name__}: {self.error}")
        return "\n".join(lines)


def verify_attention_sinks(model: nn.Module) -> Verification:
    """Check with a few short calls whether `model` streams right with the installed Transformers.

    The check is meant for models with unusual code or an unusual checkpoint, and for a Transformers newer than those
    tested. It takes about a dozen calls of at most 16 tokens, and twice as many with quantised weights. A short text
    must give the same as without attention sinks. A longer text must give the same in one call, token by token and in
    `generate`. Padding must change nothing.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        A model with or without attention sinks. It is unchanged afterwards. Other threads must not call it meanwhile.

    Returns
    -------
    Verification
        The comparisons and their differences. `report.agrees` is the verdict, and `print(report)` shows everything.

    Raises
    ------
    NotImplementedError
        When the architecture is not supported.
    TypeError
        When `model` is no Transformers model.
    RuntimeError
        While a call of the model runs.

    Examples
    --------
    >>> report = verify_attention_sinks(model)
    >>> assert report.agrees, report
    """
    base = base_model_of(model)
    outer = cast(PreTrainedModel, without_adapter(model))  # base_model_of has checked it
    before = installed_in(base)
    setup = setup_for(model, SinkSettings(SINKS, WINDOW))
    text = _random_text(base, setup.settings.visible_size + STEPS)
    differences: dict[str, float] = {}
    exact = _is_exact(outer)
    tolerance = EXACT if exact else ROUNDED
    error: Exception | None = None
    with _left_as_it_is(model, before), torch.no_grad():
        try:
            if _is_quantised(outer):
                tolerance += _own_difference(_runner(outer, base), text)
            for name, found, expected in _comparisons(outer, setup, text):
                differences[name] = _difference(found, expected, exact)
        except Exception as caught:  # any error is a finding, because users would meet it
            error = caught
    return Verification(base.config.model_type, transformers.__version__, differences, tolerance, error)


_CHECKED: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
"""Base models that have passed the check, so that a model is checked only at its first injection."""


def check_release_with(model: nn.Module) -> None:
    """Raise NotImplementedError, with the cure, when `model` does not stream right with an untested Transformers."""
    base = base_model_of(model)
    if base in _CHECKED:
        return
    untested = (
        f"transformers {transformers.__version__} is newer than {NEWEST_TRANSFORMERS}, the last release that "
        "attention_sinks was tested with"
    )
    if any(parameter.is_meta for parameter in base.parameters()) and not _is_offloaded(base):
        logger.warning(f"{untested}; this model has no weights yet and could not be checked.")
        return
    report = verify_attention_sinks(model)
    if not report.agrees:
        raise NotImplementedError(
            f"{untested}, and {report.model_type} does not stream right with it: {_what_is_wrong(report)}. Call "
            f"`pip install 'transformers=={NEWEST_TRANSFORMERS}.*'`, or look for a newer attention_sinks."
        ) from report.error
    _CHECKED.add(base)
    logger.info(f"{untested}; {report.model_type} was checked on a few tokens and streams right.")


def setup_for(model: nn.Module, settings: SinkSettings) -> Setup:
    """Return the setup of `model` for `settings`, which are cut to what the model allows.

    Raises
    ------
    NotImplementedError
        When the model cannot stream.
    ValueError
        When it cannot stream with these settings.
    TypeError
        When it is no Transformers model.
    """
    base = base_model_of(model)
    setup = Setup(base, settings, architecture_of(base.config))
    return replace(setup, settings=setup.fit(settings))


def _what_is_wrong(report: Verification) -> str:
    """Say in one line which comparisons failed and what was raised."""
    wrong = [f"{name} differs by {value:.1e} (allowed: {report.tolerance:.0e})" for name, value in report.wrong.items()]
    raised = [] if report.error is None else [f"a call raised {type(report.error).__name__}: {report.error}"]
    return "; ".join(wrong + raised)


# ---- what is compared


def _comparisons(
    outer: PreTrainedModel, setup: Setup, text: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the name of each comparison and two tensors [batch, columns, values] that must be alike.

    The model has no sinks at first; this function puts them in.
    """
    run, room = _runner(outer, setup.model), setup.settings.visible_size
    short = text[:, :room]
    plain = run(short)
    install(outer, setup)
    yield "a text that fits into the cache, and the model without attention sinks", run(short), plain

    long = run(text, cache=AttentionSinkKVCache(outer))
    cache = AttentionSinkKVCache(outer)
    calls = [run(part, cache=cache) for part in (short, *torch.split(text[:, room:], 1, dim=1))]
    yield "a longer text token by token, and in one call", torch.cat(calls, dim=1)[:, room:], long[:, room:]

    rows = torch.cat([text, torch.cat([text[:, :STEPS], short], dim=1)])
    mask = torch.ones_like(text).repeat(2, 1)
    mask[1, :STEPS] = 0
    both = run(rows, attention_mask=mask, cache=AttentionSinkKVCache(outer))
    yield "a text beside a shorter one, and alone", both[:1], long
    yield "a padded text, and alone", both[1:, STEPS:], plain

    if outer.can_generate():
        made = _generated(outer, text)
        yield "what generate sees first, and a call", made.logits[0][:, None], long[:, -1:]
        step = run(made.sequences[:, -2:-1], cache=cache)
        yield "what generate sees next, and a call", made.logits[1][:, None], step


def _runner(outer: PreTrainedModel, base: PreTrainedModel) -> Callable[..., torch.Tensor]:
    """Return a function that calls the model and returns its logits or, without them, hidden states.

    Both are [batch, columns, values].
    """
    if outer.can_generate():
        return lambda ids, **arguments: outer(input_ids=ids, **arguments).logits
    return lambda ids, **arguments: base(input_ids=ids, **arguments).last_hidden_state


def _generated(outer: Any, text: torch.Tensor) -> Any:
    """Generate two tokens after `text` by greedy search, whatever the model's own generation config says."""
    own, outer.generation_config = outer.generation_config, GenerationConfig(pad_token_id=0)
    try:
        return outer.generate(
            text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            use_cache=True,
            suppress_tokens=sorted(_special_tokens(outer.config)) or None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        outer.generation_config = own


def _own_difference(run: Callable[..., torch.Tensor], text: torch.Tensor) -> float:
    """Return how much a token differs, in the model without attention sinks, when its call ends with it."""
    whole = run(text)
    alone = [run(text[:, : column + 1])[:, -1:] for column in range(text.shape[1])]
    return _difference(torch.cat(alone, dim=1), whole, exact=False)


def _random_text(base: PreTrainedModel, length: int) -> torch.Tensor:
    """Return ids [1, length] of random words, the same for every model with this vocabulary."""
    embeddings: Any = base.get_input_embeddings()
    special, device = _special_tokens(base.config), embeddings.weight.device
    words = [token for token in range(base.config.vocab_size) if token not in special]
    generator = torch.Generator("cpu").manual_seed(0)
    chosen = torch.randint(len(words), (1, length), generator=generator, dtype=torch.long, device="cpu")
    return torch.tensor(words, dtype=torch.long, device="cpu" if device.type == "meta" else device)[chosen]


def _special_tokens(config: PreTrainedConfig) -> set[int]:
    """Return the ids that a config, or one inside it, reserves for ends, padding, images and the like."""
    found: set[int] = set()
    todo: list[dict[str, Any]] = [config.to_dict()]
    while todo:
        for name, value in todo.pop().items():
            if isinstance(value, dict):
                todo.append(value)
            elif str(name).endswith(("token_id", "token_index")):
                values = value if isinstance(value, (list, tuple)) else [value]
                found |= {token for token in values if isinstance(token, int) and token >= 0}
    return found


def _difference(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> float:
    """Return the distance of `found` from `expected`, as a share of the spread of `expected`.

    It is that of the worst token or, where values are not `exact`, of the median one. It is NaN when any value is not
    finite.
    """
    found, expected = found.double().cpu(), expected.double().cpu()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    shares = (found - expected).norm(dim=-1) / spread.clamp(min=torch.finfo(torch.float32).tiny)
    return float(shares.max() if exact else shares.nanmedian()) if shares.isfinite().all() else float("nan")


# ---- the model meanwhile


@contextmanager
def _left_as_it_is(model: nn.Module, before: InstalledPatches | None) -> Iterator[None]:
    """Keep the model without attention sinks and in evaluation mode for the block, and restore it afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        uninstall(model)
        model.eval()
        yield
    finally:
        restore(base_model_of(model), before)
        for module in training:
            module.training = True


def _is_exact(outer: PreTrainedModel) -> bool:
    """Whether all weights are in single precision or better."""
    if _is_quantised(outer):
        return False
    return all(parameter.dtype in (torch.float32, torch.float64) for parameter in outer.parameters())


def _is_quantised(outer: PreTrainedModel) -> bool:
    return bool(getattr(outer, "is_quantized", False))


def _is_offloaded(base: PreTrainedModel) -> bool:
    """Whether accelerate loads weights from elsewhere when they are needed."""
    return any(hasattr(module, "_hf_hook") for module in base.modules())
