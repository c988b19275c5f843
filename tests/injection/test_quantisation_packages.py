"""A checkpoint whose quantised weights need a package that is missing: one error, before weights are looked for."""

import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from transformers import BitsAndBytesConfig

import attention_sinks
from attention_sinks import quantised
from attention_sinks.quantised import PACKAGES
from support.helpers import refused, tiny_config, tiny_llama

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
SETTINGS = {
    "gptq": GPTQ,
    "awq": AWQ,
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "spqr": {"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16},
}
"""Configs of methods that a config with nothing but their name does not describe."""

CLASSES = pytest.mark.parametrize("name", ["AutoModelForCausalLM", "AutoModel", "LlamaForCausalLM"])


def write_config(folder, setting, **changes):
    """A config and no weights: whoever looks for them fails with another error."""
    config = {**tiny_config().to_dict(), "quantization_config": setting, **changes}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda module: None)


@CLASSES
@pytest.mark.parametrize("setting, packages", [(GPTQ, "'gptqmodel' 'optimum'"), (AWQ, "'gptqmodel'")])
def test_gptq_and_awq(tmp_path, nothing_installed, name, setting, packages):
    write_config(tmp_path, setting)
    load = getattr(attention_sinks, name).from_pretrained
    refused(ImportError, lambda: load(tmp_path), tmp_path, setting["quant_method"], f"`pip install {packages}`")
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    refused(ImportError, lambda: load(tmp_path, config=config), tmp_path, f"`pip install {packages}`")


def test_one_of_two_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda module: None if module == "optimum" else object())
    write_config(tmp_path, GPTQ)
    load = attention_sinks.AutoModelForCausalLM.from_pretrained
    refused(ImportError, lambda: load(tmp_path), "Not installed: optimum.", "`pip install 'optimum'`")


def test_the_text_decoder_of_a_multimodal_model(tmp_path, nothing_installed):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "quantization_config": AWQ}})
    )
    refused(ImportError, lambda: attention_sinks.AutoModelForCausalLM.from_pretrained(tmp_path), "gptqmodel")


@CLASSES
def test_what_the_user_asks_for(tmp_path, nothing_installed, name):
    tiny_llama().save_pretrained(tmp_path)
    load = getattr(attention_sinks, name).from_pretrained
    setting = BitsAndBytesConfig(load_in_8bit=True)
    refused(ImportError, lambda: load(tmp_path, quantization_config=setting), "bitsandbytes", "`pip install")


@CLASSES
def test_with_the_packages_transformers_decides(tmp_path, monkeypatch, name):
    monkeypatch.setattr(quantised, "find_spec", lambda module: object())
    write_config(tmp_path, AWQ)
    if find_spec("gptqmodel") is None:
        with pytest.raises(ImportError, match="AWQ quantized model requires"):  # as plain Transformers says it
            getattr(attention_sinks, name).from_pretrained(tmp_path)


@pytest.mark.parametrize("setting", [None, {"quant_method": "not_known"}])
def test_methods_that_need_nothing_we_know(tmp_path, nothing_installed, setting):
    tiny_llama().save_pretrained(tmp_path)
    write_config(tmp_path, setting)
    attention_sinks.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.each_release
@pytest.mark.parametrize("method", PACKAGES)
def test_transformers_needs_these_packages(tmp_path, method):
    """It refuses as well, so nothing is refused that would load."""
    if all(find_spec(module) for module in PACKAGES[method]):
        pytest.skip(f"{' and '.join(PACKAGES[method])} is installed")
    tiny_llama().save_pretrained(tmp_path)
    write_config(tmp_path, SETTINGS.get(method, {"quant_method": method}))
    with pytest.raises((ImportError, RuntimeError)) as caught:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    assert "require" in str(caught.value) or "GPU" in str(caught.value)
