"""Whether a model streams right with the installed Transformers: the library checks itself on the model it is given.

Transformers changes every few days what this library rests on. A small text through a tiny cache shows most of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .architecture.modules import base_model_of, without_adapter
from .architecture.setup import MARK, Setup
from .cache.cache import AttentionSinkKVCache
from .models.registry import architecture_of
from .patching import install, uninstall
from .settings import SinkSettings
from .versions import NEWEST_TRANSFORMERS

logger = logging.get_logger(__name__)

SINKS, WINDOW = 2, 4
STEPS = 4
"""Single tokens that are fed after a text that just fits into the cache."""

EXACT, ROUNDED = 1e-3, 0.1
"""Allowed differences, as a share of what the values vary by: of float32, and of half precision or quantised weights.
SmolLM2-135M in bfloat16 differs from itself by 0.04; queries one place off the sinks change it by 0.2, a mask that is
not honoured by 1."""


@dataclass(frozen=True)
class Verification:
    """What `verify_attention_sinks` found.

    Attributes
    ----------
    model_type : str
        `config.model_type` of the model's decoder.
    transformers : str
        The installed version.
    differences : dict
        What was compared -> the largest difference of any token, as a share of what its values vary by; of models in
        half precision or with quantised weights, the median of the tokens.
    tolerance : float
        What is allowed.
    error : Exception or None
        What a call raised; the comparisons that should have followed are missing then.
    """

    model_type: str
    transformers: str
    differences: dict[str, float]
    tolerance: float
    error: Exception | None = None

    @property
    def agrees(self) -> bool:
        """Whether all was compared and nothing differs."""
        return self.error is None and not self.wrong

    @property
    def wrong(self) -> dict[str, float]:
        """The differences that are not allowed."""
        return {name: value for name, value in self.differences.items() if not value <= self.tolerance}

    def __str__(self) -> str:
        verdict = "streams right" if self.agrees else "does not stream right"
        lines = [f"{self.model_type} {verdict} with transformers {self.transformers} (allowed: {self.tolerance:.0e})"]
        lines += [f"  {value:8.1e}  {name}" for name, value in self.differences.items()]
        if self.error is not None:
            lines.append(f"  raised    {type(self.error).__name__}: {self.error}")
        return "\n".join(lines)


def verify_attention_sinks(model: nn.Module) -> Verification:
    """Check with a few short calls whether `model` streams as it should with the installed Transformers.

    For models whose code or checkpoint is unusual, and for a Transformers newer than those tested. About a dozen calls
    of at most 16 tokens: a short text must give what the model gives without attention sinks, a longer one in one call
    what it gives token by token and in `generate`, and padding in another row must change nothing.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        With or without attention sinks; afterwards it is as it was. Do not call it from other threads meanwhile.

    Returns
    -------
    Verification
        What was compared and by how much it differs; `report.agrees` is the verdict, `print(report)` shows all.

    Raises
    ------
    NotImplementedError
        When the architecture is not supported.
    TypeError
        When `model` is no Transformers model.

    Examples
    --------
    >>> report = verify_attention_sinks(model)
    >>> assert report.agrees, report
    """
    base, outer = base_model_of(model), without_adapter(model)
    before = base.__dict__.get(MARK)
    setup = setup_for(model, SinkSettings(SINKS, WINDOW))
    text = _random_text(base, setup.settings.visible_size + STEPS)
    differences: dict[str, float] = {}
    exact, error = _is_exact(outer), None
    try:
        with _left_as_it_is(model, before), torch.no_grad():
            for name, found, expected in _comparisons(outer, setup, text):
                differences[name] = _difference(found, expected, exact)
    except Exception as caught:  # whatever it is, it is what a user would have met
        error = caught
    tolerance = EXACT if exact else ROUNDED
    return Verification(base.config.model_type, transformers.__version__, differences, tolerance, error)


_CHECKED: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
"""Base models that have passed: a model is checked at its first injection."""


def check_release_with(model: nn.Module) -> None:
    """NotImplementedError, with the cure, when `model` does not stream right with an untested Transformers."""
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
    """What is to be injected into `model` for `settings`, which are cut to what it allows.

    Raises
    ------
    NotImplementedError, ValueError, TypeError
        When the model cannot stream, not with these settings, or is no Transformers model.
    """
    base = base_model_of(model)
    setup = Setup(base, settings, architecture_of(base.config))
    return replace(setup, settings=setup.fit(settings))


def _what_is_wrong(report: Verification) -> str:
    wrong = [f"{name} differs by {value:.1e} (allowed: {report.tolerance:.0e})" for name, value in report.wrong.items()]
    raised = [] if report.error is None else [f"a call raised {type(report.error).__name__}: {report.error}"]
    return "; ".join(wrong + raised)


# ---- what is compared


def _comparisons(
    outer: PreTrainedModel, setup: Setup, text: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """What must be alike, [batch, columns, values] each. The model is plain at first; sinks are put in on the way."""
    run, room = _runner(outer, setup.model), setup.settings.visible_size
    short = text[:, :room]
    plain = run(short)
    install(outer, setup)
    yield "a text that fits into the cache, and the model without attention sinks", run(short), plain
    long = run(text, cache=AttentionSinkKVCache(outer))
    cache = AttentionSinkKVCache(outer)
    calls = [run(part, cache=cache) for part in (short, *text[:, room:].split(1, dim=1))]
    yield "a longer text token by token, and in one call", torch.cat(calls, dim=1)[:, room:], long[:, room:]
    rows, mask = torch.cat([text, torch.cat([text[:, :STEPS], short], dim=1)]), torch.ones_like(text).repeat(2, 1)
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
    """Calls the model and returns [batch, columns, values]: logits of a language model, else hidden states."""
    if outer.can_generate():
        return lambda ids, **arguments: outer(input_ids=ids, **arguments).logits
    return lambda ids, **arguments: base(input_ids=ids, **arguments).last_hidden_state


def _generated(outer: PreTrainedModel, text: torch.Tensor) -> Any:
    """Two tokens after `text`, greedily, whatever the model's own generation config says."""
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


def _random_text(base: PreTrainedModel, length: int) -> torch.Tensor:
    """Ids [1, length] of words, the same for every model with this vocabulary."""
    special, device = _special_tokens(base.config), base.get_input_embeddings().weight.device
    words = [token for token in range(base.config.vocab_size) if token not in special]
    chosen = torch.randint(len(words), (1, length), generator=torch.Generator().manual_seed(0))
    return torch.tensor(words, dtype=torch.long, device="cpu" if device.type == "meta" else device)[chosen]


def _special_tokens(config: PreTrainedConfig) -> set[int]:
    """Ids that a config, or one inside it, has a use for: ends, padding, places of images."""
    found, todo = set(), [config.to_dict()]
    while todo:
        for name, value in todo.pop().items():
            if isinstance(value, dict):
                todo.append(value)
            elif str(name).endswith(("token_id", "token_index")):
                values = value if isinstance(value, (list, tuple)) else [value]
                found |= {token for token in values if isinstance(token, int) and token >= 0}
    return found


def _difference(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> float:
    """How far `found` is from `expected`, as a share of what that varies by: of the worst token, or of the median one
    where values are not exact."""
    found, expected = found.double().cpu(), expected.double().cpu()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    shares = (found - expected).norm(dim=-1) / spread.clamp(min=torch.finfo(torch.float32).tiny)
    return float(shares.max() if exact else shares.nanmedian()) if shares.isfinite().all() else float("nan")


# ---- the model meanwhile


@contextmanager
def _left_as_it_is(model: nn.Module, before: Any) -> Iterator[None]:
    """The model without attention sinks and in evaluation mode; afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    try:
        uninstall(model)
        model.eval()
        yield
    finally:
        uninstall(model)
        if before is not None:
            install(model, before.setup)
        for module in training:
            module.training = True


def _is_exact(outer: PreTrainedModel) -> bool:
    """Whether all weights are in single precision or better."""
    if getattr(outer, "is_quantized", False):
        return False
    return all(parameter.dtype in (torch.float32, torch.float64) for parameter in outer.parameters())


def _is_offloaded(base: PreTrainedModel) -> bool:
    """Whether weights that are on no device come in where they are needed."""
    return any(hasattr(module, "_hf_hook") for module in base.modules())
