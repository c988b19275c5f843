"""Facts of a model's config and samples of its weights, which tell whose cache a file holds."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from transformers import PreTrainedModel

FACTS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_types",
    "sliding_window",
    "rope_parameters",
)
SAMPLES = 64
"""Numbers that are read of each weight, spread evenly. Training or another checkpoint changes every one of them."""


def fingerprint(model: PreTrainedModel, whole: bool = False) -> dict[str, Any]:
    """Return facts and samples of the base model `model`, as JSON can hold them.

    They are the same for the same checkpoint loaded anew. Adapters that are not merged count as weights. Weights that
    are not in memory, because they are offloaded to disk, are left out.

    Of a model that several processes share, each sees its own part; with `whole` all of it, as if no other had a part.
    All processes then call this together.
    """
    known = model.config.to_dict()
    facts = {name: _plain(known[name]) for name in FACTS if name in known}
    parts: dict[str, Any] = {}
    unknown = set()
    for name, weight in model.named_parameters():
        part = ".".join(name.split(".")[:2])
        sample = _sample(weight, whole)
        if sample is None:
            unknown.add(part)
        else:
            parts.setdefault(part, hashlib.sha256()).update(name.encode() + sample)
    weights = {part: digest.hexdigest()[:16] for part, digest in parts.items() if part not in unknown}
    return {"config": facts, "weights": weights}


def difference(saved: dict[str, Any], own: dict[str, Any]) -> str | None:
    """Say what tells two fingerprints apart, or return None when nothing does."""
    for name in sorted({*saved["config"], *own["config"]}):
        theirs, ours = saved["config"].get(name), own["config"].get(name)
        if theirs != ours:
            return f"its config has {name:.80}={theirs!r:.200}, this model {ours!r:.200}"
    for part in sorted({*saved["weights"]} & {*own["weights"]}):
        if saved["weights"][part] != own["weights"][part]:
            return f"its weights differ from this model's in {part}"
    return None


def _sample(weight: torch.Tensor, whole: bool) -> bytes | None:
    """Return type, shape and some numbers of a weight, or None when they cannot be read."""
    if weight.is_meta:
        return None
    to_local = getattr(weight, "full_tensor" if whole else "to_local", None)  # a distributed tensor has them
    local = weight if to_local is None else to_local()
    try:
        flat = local.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        numbers = flat[: SAMPLES * step : step].to("cpu").contiguous().view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError):  # some quantised tensors know no such operations
        return None
    return f"{weight.dtype} {tuple(weight.shape)}".encode() + numbers.tobytes()


def _plain(value: Any) -> Any:
    """Return `value` as it comes back from JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
