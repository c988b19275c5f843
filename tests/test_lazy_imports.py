"""`import attention_sinks` loads little, and every public name is there all the same."""

import pickle
import subprocess
import sys

import pytest
import transformers

import attention_sinks
from attention_sinks import model_classes

LOADED = """
import sys
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
before = set(sys.modules)
{then}
print(*sorted(set(sys.modules) - before))
"""

HEAVY = ("datasets", "gguf", "matplotlib", "nltk", "pandas", "peft", "pydantic", "rich", "scipy", "sympy", "typer")


def modules_loaded_by(code):
    command = [sys.executable, "-c", LOADED.format(then=code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def is_modelling_code(module):
    parts = module.split(".")
    return module.startswith("transformers.models.") and parts[2] != "auto" and parts[-1].startswith("modeling_")


def test_importing_the_package_loads_what_the_auto_classes_need_and_no_more():
    loaded = modules_loaded_by("import attention_sinks; dir(attention_sinks)")
    assert not [module for module in loaded if is_modelling_code(module)]
    assert not [module for module in loaded if module.split(".")[0] in HEAVY]
    assert "transformers.modeling_utils" not in loaded


def test_injecting_and_loading_bring_the_modelling_code_of_no_architecture():
    names = "AutoModelForCausalLM, StreamingChat, inject_attention_sinks, supported_model_types, verify_attention_sinks"
    loaded = modules_loaded_by(f"from attention_sinks import {names}; supported_model_types()")
    assert "attention_sinks.models.registry" in loaded
    assert not [module for module in loaded if is_modelling_code(module)]


def test_a_class_brings_the_modelling_code_of_its_architecture_alone():
    loaded = modules_loaded_by("from attention_sinks import MptForCausalLM")
    assert [module for module in loaded if is_modelling_code(module)] == ["transformers.models.mpt.modeling_mpt"]


def test_an_old_type_is_loaded_when_its_config_is_asked_for():
    loaded = modules_loaded_by("import attention_sinks; assert AutoConfig.for_model('Yi').model_type == 'Yi'")
    assert "attention_sinks.legacy.yi" in loaded and "attention_sinks.legacy.qwen" not in loaded


def test_all_public_names_can_be_listed_imported_and_pickled():
    assert set(attention_sinks.__all__) <= set(dir(attention_sinks))
    everything = {}
    exec("from attention_sinks import *", everything)
    assert set(attention_sinks.__all__) <= set(everything)
    for name in attention_sinks.__all__:
        value = getattr(attention_sinks, name)
        assert everything[name] is value and pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize("name", model_classes.__all__)
def test_a_model_class_is_one_of_transformers(name):
    ours, theirs = getattr(attention_sinks, name), getattr(transformers, name)
    assert issubclass(ours, theirs) and getattr(model_classes, name) is ours
    assert ours is theirs or ours.__name__ == name


@pytest.mark.parametrize("module", [attention_sinks, model_classes], ids=["package", "model_classes"])
def test_a_name_that_is_none_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match=f"'{module.__name__}'.*'LamaModel'"):
        _ = module.LamaModel
