"""The pretrained model of the tests in tests/real, and the marks of these tests."""

import os
from pathlib import Path

import pytest

from support.paths import ROOT

FOLDER = Path(os.environ.get("ATTENTION_SINKS_MODEL") or ROOT / "models" / "SmolLM2-135M-Instruct")

NEEDS_THE_MODEL = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not (FOLDER / "config.json").is_file(),
        reason=f"no model in {FOLDER}: run `python demo/fetch_model.py` or set ATTENTION_SINKS_MODEL",
    ),
]
