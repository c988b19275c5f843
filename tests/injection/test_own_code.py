"""A checkpoint with code of its own: what cannot stream is refused before any of that code runs."""

import json
import shutil
import sys

import pytest
import transformers

import attention_sinks
from support.helpers import refused, tiny_llama

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = {model_type!r}


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
LOADERS = ["AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A function that makes the folder of a checkpoint of some type with code, which touches `marker` when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    before = set(sys.modules)

    def make(model_type, **changes):
        folder = tmp_path / model_type
        tiny_llama().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        names = dict.fromkeys(LOADERS, "modeling_own.OwnModel")
        config |= {"model_type": model_type, "auto_map": {"AutoConfig": "modeling_own.OwnConfig", **names}, **changes}
        (folder / "config.json").write_text(json.dumps(config))
        code = CODE.format(marker=str(tmp_path / "marker"), model_type=model_type)
        (folder / "modeling_own.py").write_text(code)
        return folder

    make.marker = tmp_path / "marker"
    yield make
    for name in set(sys.modules) - before:
        if "modeling_own" in name:
            del sys.modules[name]
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("model_type", ["chatglm2", "internlm2", "Baichuan2", "RefinedWebModel", "gpt2"])
def test_a_type_that_cannot_stream(checkpoint, model_type, trust, loader, monkeypatch):
    """Nobody is asked whether to run the code, and it does not run. GPT-2 is known to Transformers, the others not."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("the user was asked to trust the code"))
    folder = checkpoint(model_type)
    load = getattr(attention_sinks, loader).from_pretrained
    refused(NotImplementedError, lambda: load(folder, trust_remote_code=trust), model_type)
    assert not checkpoint.marker.exists()


def test_the_marker_shows_that_code_ran(checkpoint):
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint("chatglm2"), trust_remote_code=True)
    assert checkpoint.marker.exists()


@pytest.mark.parametrize("trust", [None, False])
def test_a_supported_type_loads_without_its_code(checkpoint, trust):
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), trust_remote_code=trust)
    assert type(model) is not transformers.LlamaForCausalLM and isinstance(model, transformers.LlamaForCausalLM)
    assert not checkpoint.marker.exists()


def test_trusted_code_of_a_supported_type_runs(checkpoint):
    """It was asked for, and what it makes streams where its attention is that of Transformers."""
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), trust_remote_code=True)
    assert checkpoint.marker.exists() and type(model).__name__ == "OwnModel"
    assert attention_sinks.AttentionSinkKVCache(model).tokens_seen.tolist() == []
