"""The table of architectures cannot lie: every type of the installed Transformers is supported or refused."""

import importlib
import re
import warnings

import pytest
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from attention_sinks import supported_model_types, versions
from attention_sinks.models.registry import ARCHITECTURES, WRAPPERS, architecture_of
from attention_sinks.models.unsupported import UNSUPPORTED
from attention_sinks.versions import NEWEST_TRANSFORMERS, SINCE
from support.helpers import refused
from support.paths import ROOT
from support.zoo import ENTRIES, ZOO

pytestmark = pytest.mark.each_release

KNOWN = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _release(version):
    return Version(version).release[:2]


def test_every_causal_language_model_is_supported_or_refused_with_a_reason():
    unknown = sorted(KNOWN - set(supported_model_types()) - set(UNSUPPORTED) - set(SINCE))
    message = f"neither supported nor refused in transformers {transformers.__version__}: {unknown}"
    if unknown and _release(transformers.__version__) > _release(NEWEST_TRANSFORMERS):
        warnings.warn(message, stacklevel=1)
        print(message)
    else:
        assert not unknown, message


def test_the_lock_has_the_newest_release_that_is_tested():
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    locked = re.findall(r"^transformers==([\d.]+)", lock, flags=re.MULTILINE)
    assert max(map(_release, locked)) == _release(NEWEST_TRANSFORMERS)


def test_as_many_as_the_readme_says():
    if _release(transformers.__version__) == _release(NEWEST_TRANSFORMERS):
        assert len(supported_model_types()) >= 142


def test_nothing_is_both_supported_and_refused():
    assert not {*ARCHITECTURES, *WRAPPERS} & set(UNSUPPORTED)


def test_every_supported_type_has_a_tiny_model():
    tested = {animal.model_type: animal.auto for animal in ZOO}
    assert {name for name, auto in tested.items() if auto is AutoModelForCausalLM} == set(supported_model_types())
    assert set(WRAPPERS) & set(CONFIG_MAPPING) - set(SINCE) <= set(tested)
    assert not {animal.model_type for animal in ENTRIES if animal not in ZOO} & set(CONFIG_MAPPING) - set(SINCE)


@pytest.mark.parametrize("model_type", sorted(set(UNSUPPORTED) & KNOWN))
def test_what_cannot_stream_is_refused_from_its_config(model_type):
    config = PreTrainedConfig()
    config.model_type = model_type
    refused(NotImplementedError, lambda: architecture_of(config), model_type, UNSUPPORTED[model_type])


@pytest.mark.parametrize("model_type", sorted(SINCE))
def test_what_needs_a_newer_release_is_refused_by_older_ones(model_type, monkeypatch):
    assert model_type in {*ARCHITECTURES, *WRAPPERS}
    monkeypatch.setattr(versions, "transformers_release", lambda: (SINCE[model_type][0], SINCE[model_type][1] - 1))
    assert model_type not in supported_model_types()
    config = PreTrainedConfig()
    config.model_type = model_type
    refused(NotImplementedError, lambda: architecture_of(config), model_type, "pip install --upgrade")


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) & set(MODEL_MAPPING_NAMES)))
def test_the_attention_class_of_a_row_exists(model_type):
    names = MODEL_MAPPING_NAMES[model_type]
    model_class = getattr(transformers, names if isinstance(names, str) else names[0], None)
    if model_class is not None and model_class.__module__.startswith("transformers."):
        modelling = importlib.import_module(model_class.__module__)
        assert hasattr(modelling, ARCHITECTURES[model_type].attention)


def test_an_unknown_type_gets_close_matches_and_the_way_to_add_it():
    config = AutoConfig.for_model("llama")
    config.model_type = "lama"
    message = refused(NotImplementedError, lambda: architecture_of(config), "lama", "llama")
    assert "add an entry" in message
