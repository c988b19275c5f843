"""A model that several processes share: what is refused before any of them starts, and the part that each loads."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from transformers import PreTrainedConfig

from ..auto import AutoModelForCausalLM
from ..report.memory import check_memory
from ..report.report import ModelReport
from ..report.source import read_config
from ..settings import CacheDtype
from .loading import load_arguments, look_to_chat
from .quiet import quiet_libraries


def check_options(count: int, options: dict[str, bool]) -> None:
    """Raise ValueError when one of the `options`, by name, is given that sharing by `count` processes excludes."""
    for name, is_given in options.items():
        if is_given:
            raise ValueError(f"--tensor-parallel={count} and {name} exclude each other; leave one out.")


def look_to_share(
    count: int,
    name: str,
    system: str | None,
    template_kwargs: dict[str, Any] | None,
    sinks: int | None,
    window: int | None,
    dtype: str,
    cache_dtype: CacheDtype,
) -> tuple[dict[str, Any], Any]:
    """Look at a model, and return what `load_part` needs, and the tokenizer.

    Raises
    ------
    MemoryError
        When the weights do not fit into memory.
    ValueError
        When the model cannot chat, or so many processes cannot share it here.
    """
    report, tokenizer, window = look_to_chat(name, system, template_kwargs, sinks, window)
    _check_here(count)
    _check_model(count, report, read_config(report.source).get_text_config())
    check_memory(report.source, report, dtype, "try --dtype bfloat16")
    return load_arguments(report, window, dtype, cache_dtype), tokenizer


def load_part(arguments: dict[str, Any]) -> Any:
    """Load this process's part of a model, when it has met the others; ValueError when there are no parts."""
    from transformers.distributed import DistributedConfig

    shared = DistributedConfig(tp_plan="auto", tp_size=torch.distributed.get_world_size())
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(**arguments, distributed_config=shared)
    if not any(hasattr(weight, "full_tensor") for weight in model.parameters()):
        raise ValueError("Transformers has left the model whole; leave --tensor-parallel out, or use another release.")
    return model.eval()


def _check_here(count: int) -> None:
    """Raise ValueError when this machine has no place for `count` processes that compute together."""
    if not torch.distributed.is_available():
        raise ValueError(f"--tensor-parallel={count}: this PyTorch has no torch.distributed; install one that has it.")
    if not torch.accelerator.is_available():
        if not torch.distributed.is_gloo_available():
            raise ValueError(f"--tensor-parallel={count}: this PyTorch has no gloo; install one that has it.")
        return
    kind, devices = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    if kind is not None and kind.type == "mps":
        raise ValueError(f"--tensor-parallel={count}: GPUs of Apple cannot share a model; leave it out.")
    if devices < count:
        raise ValueError(
            f"--tensor-parallel={count} needs a GPU for each process, and this one sees {devices}; choose at most "
            f"{devices}."
        )


def _check_model(count: int, report: ModelReport, config: PreTrainedConfig) -> None:
    """Raise ValueError when the model of a report, whose decoder has `config`, cannot be cut into `count` parts."""
    if report.source.gguf_file is not None:
        raise ValueError(
            f"--tensor-parallel={count}: {report.source.name!r} is a GGUF file, which is loaded as a whole; give the "
            "folder of an ordinary checkpoint."
        )
    if not getattr(config, "base_model_tp_plan", None):
        raise ValueError(
            f"--tensor-parallel={count}: Transformers has no plan for how processes share a {config.model_type!r} "
            "model; leave it out, or choose another model."
        )
    heads = {name: getattr(config, name, None) for name in ("num_key_value_heads", "num_attention_heads")}
    for name, number in heads.items():
        if isinstance(number, int) and number % count:
            raise ValueError(
                f"--tensor-parallel={count} does not divide {name}={number} of {report.source.name!r}, of which every "
                f"process has as many; choose one of {_divisors(number)}."
            )


def _divisors(number: int) -> str:
    return ", ".join(str(count) for count in range(2, number + 1) if number % count == 0) or "no number: leave it out"
