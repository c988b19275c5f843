"""Recordings of the original package (attention_sinks 0.4.0, Transformers 4.34.0), in golden/<architecture>.

Each folder holds a tiny model (`config.json`, `model.safetensors`), what the original computed with it
(`golden.safetensors`) and how it was fed (`manifest.json`).
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from attention_sinks import inject_attention_sinks

FOLDER = Path(__file__).parent / "golden"
ARCHITECTURES = sorted(folder.name for folder in FOLDER.iterdir())

# GPT-J and MPT have nothing but eager attention; that of Falcon with ALiBi is wrong in Transformers itself.
IMPLEMENTATIONS = {"falcon_alibi": ["sdpa"], "gptj": ["eager"], "mpt": ["eager"]}
SUBJECTS = [(name, how) for name in ARCHITECTURES for how in IMPLEMENTATIONS.get(name, ["eager", "sdpa"])]


@dataclass(frozen=True)
class GoldenCase:
    """One recording; `logits` [tokens, vocabulary] or the generated `sequence` [tokens], prompt included."""

    architecture: str
    name: str
    kind: str
    sinks: int
    window: int
    ids: torch.Tensor
    calls: list | None = None
    logits: torch.Tensor | None = None
    sequence: torch.Tensor | None = None
    prompt_length: int = 0
    new_tokens: int = 0

    def __str__(self):
        return f"{self.architecture} {self.name}"

    @property
    def fits_the_cache(self):
        """Whether no call went beyond the room left: then the original's result does not depend on the calls."""
        seen = 0
        for length in self.calls or [self.prompt_length]:
            if length > 1 and seen + length > self.sinks + self.window + 1:
                return False
            seen += length
        return True


def cases(*kinds, architecture="llama"):
    """The recordings of one architecture that are of these kinds: "stream", "prompt", "chunks", "generate"."""
    folder = FOLDER / architecture
    tensors = load_file(folder / "golden.safetensors")
    recorded = json.loads((folder / "manifest.json").read_text())["cases"]
    return [
        GoldenCase(
            architecture=architecture,
            name=name,
            kind=case["kind"],
            sinks=case["sink"],
            window=case["window"],
            ids=tensors[case["ids"]][:, : case["n_ids"]],
            calls=case.get("chunks"),
            logits=tensors.get(case.get("logits")),
            sequence=tensors.get(case.get("sequences")),
            prompt_length=case.get("prompt_len", 0),
            new_tokens=case.get("new_tokens", 0),
        )
        for name, case in recorded.items()
        if case["kind"] in kinds
    ]


@cache
def golden_model(architecture="llama", implementation="sdpa"):
    """The recorded model in today's Transformers. Shared: copy it before changing it."""
    return AutoModelForCausalLM.from_pretrained(FOLDER / architecture, attn_implementation=implementation).eval()


def every_subject(*kinds, when=lambda case: True):
    """Parametrise by each recording of these kinds and each attention implementation its model has."""
    found = [(case, how) for name, how in SUBJECTS for case in cases(*kinds, architecture=name) if when(case)]
    return pytest.mark.parametrize("case, implementation", found, ids=str)


def fits(case):
    return case.fits_the_cache


def streaming(case, implementation, prefill="streaming"):
    """The recorded model with attention sinks of the recorded sizes."""
    model = deepcopy(golden_model(case.architecture, implementation))
    return inject_attention_sinks(model, case.sinks, case.window, prefill)
