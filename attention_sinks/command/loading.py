"""The model of a subcommand: looked at first, then loaded."""

from __future__ import annotations

from typing import Any

import torch

from ..auto import AutoModelForCausalLM
from ..chat.template import ChatTemplate
from ..report.memory import check_memory
from ..report.report import ModelReport, report_and_tokenizer
from ..report.source import find_source
from ..settings import CacheDtype, SinkSettings


def check_window(report: ModelReport, window: int) -> None:
    """Raise ValueError when `window` is larger than the largest that is of use to a model."""
    largest = report.largest_window
    if largest is not None and window > largest:
        raise ValueError(
            f"--window={window} is more than {report.source.name!r} can use: {report.largest_window_reason}; "
            f"choose at most {largest}."
        )


def load_model(
    report: ModelReport, cure: str, window: int, dtype: str, cache_dtype: CacheDtype = "auto", device: str | None = None
) -> Any:
    """Load the model of a report with its sinks, on `device`, or else on the accelerators that there are.

    Raises
    ------
    MemoryError
        When the weights do not fit into memory; `cure` says what else may help.
    ValueError
        When there is no such device.
    """
    _check_device(device)
    check_memory(report.source, report, dtype, cure, device)
    place = device or ("auto" if torch.cuda.is_available() else None)
    arguments = load_arguments(report, window, dtype, cache_dtype)
    return AutoModelForCausalLM.from_pretrained(**arguments, device_map=place).eval()


def load_arguments(report: ModelReport, window: int, dtype: str, cache_dtype: CacheDtype) -> dict[str, Any]:
    """Return what `from_pretrained` is handed for the model of a report."""
    return {
        **report.source.arguments,
        "attention_sink_size": report.sink_size,
        "attention_sink_window_size": window,
        "attention_sink_cache_dtype": cache_dtype,
        "dtype": dtype,
    }


def look_to_chat(
    name: str, system: str | None, template_kwargs: dict[str, Any] | None, sinks: int | None, window: int | None
) -> tuple[ModelReport, Any, int]:
    """Return what is known of a model without its weights, its tokenizer, and the window.

    Raises
    ------
    ValueError
        When there is no such model, it cannot chat, or the window is too large for it.
    """
    report, tokenizer = report_and_tokenizer(find_source(name), SinkSettings.sink_size if sinks is None else sinks)
    window = report.window if window is None else window
    check_window(report, window)
    if report.chat_problem is not None:
        raise ValueError(f"{name!r} cannot chat: {report.chat_problem}")
    ChatTemplate(tokenizer, system, None, None, template_kwargs)  # refused before weights are read
    return report, tokenizer, window


def load_to_chat(
    name: str,
    system: str | None,
    template_kwargs: dict[str, Any] | None,
    sinks: int | None,
    window: int | None,
    dtype: str,
    cache_dtype: CacheDtype,
    device: str | None,
) -> tuple[Any, Any]:
    """Look at a model, refuse what cannot chat, and return it loaded, with its tokenizer.

    Raises
    ------
    MemoryError
        When the weights do not fit into memory.
    ValueError
        When there is no such model or device, it cannot chat, or the window is too large for it.
    """
    report, tokenizer, window = look_to_chat(name, system, template_kwargs, sinks, window)
    return load_model(report, "try --dtype bfloat16", window, dtype, cache_dtype, device), tokenizer


def _check_device(device: str | None) -> None:
    if device is None:
        return
    try:
        torch.empty(0, dtype=torch.float32, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device={device}: {reason}; leave it out, or choose one that is here.") from error
