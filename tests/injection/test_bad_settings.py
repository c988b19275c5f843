"""Wrong settings and wrong models: refused before anything is loaded or changed, with argument, value and cure."""

import json

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.helpers import (
    BAD,
    assert_close,
    random_ids,
    refused,
    stream,
    tiny_config,
    tiny_llama,
)

S, W = 4, 12


@pytest.fixture
def model():
    return inject_attention_sinks(tiny_llama(), S, W)


# --- settings ---------------------------------------------------------------------------------------------------------

WRONG_SETTINGS = [
    ("attention_sink_size", -1),
    ("attention_sink_size", 4.0),
    ("attention_sink_size", "4"),
    ("attention_sink_window_size", 0),
    ("attention_sink_window_size", -3),
    ("attention_sink_window_size", 12.5),
    ("attention_sink_window_size", "1020"),
    ("attention_sink_prefill", "sparse"),
    ("attention_sink_prefill", None),
    ("attention_sink_prefill", True),
]


@pytest.mark.parametrize("argument, value", WRONG_SETTINGS)
def test_settings_of_an_injection(argument, value):
    model = tiny_llama()
    before = [dict(vars(module)) for module in model.modules()]
    refused(BAD, lambda: inject_attention_sinks(model, **{argument: value}), argument, repr(value))
    assert [dict(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("argument, value", WRONG_SETTINGS)
def test_settings_are_refused_before_anything_is_loaded(tmp_path, argument, value):
    (tmp_path / "config.json").write_text(tiny_config().to_json_string())  # and no weights at all
    automatic = attention_sinks.AutoModelForCausalLM
    refused(BAD, lambda: automatic.from_pretrained(tmp_path, **{argument: value}), argument, repr(value))
    refused(BAD, lambda: automatic.from_config(tiny_config(), **{argument: value}), argument, repr(value))
    refused(BAD, lambda: attention_sinks.LlamaForCausalLM(tiny_config(), **{argument: value}), argument, repr(value))
    classes = attention_sinks.LlamaForCausalLM
    refused(BAD, lambda: classes.from_pretrained(tmp_path, **{argument: value}), argument, repr(value))


@pytest.mark.parametrize("argument, value", WRONG_SETTINGS[:7])
def test_settings_of_a_cache(model, argument, value):
    refused(BAD, lambda: AttentionSinkKVCache(model, **{argument: value}), argument, repr(value))


def test_a_misspelt_setting(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    automatic = attention_sinks.AutoModelForCausalLM
    with pytest.raises(BAD, match="attention_sink_windw_size"):
        automatic.from_pretrained(tmp_path, attention_sink_windw_size=12)
    with pytest.raises(BAD, match="attention_sink_windw_size"):
        automatic.from_config(tiny_config(), attention_sink_windw_size=12)


def test_wrong_settings_leave_an_injected_model_as_it_is(model):
    refused(BAD, lambda: inject_attention_sinks(model, -1, 12), "attention_sink_size", "-1")
    ids = random_ids(60)
    assert_close(stream(model, ids[None])[0][0], naive_logits(tiny_llama(), ids, S, W))


# --- models -----------------------------------------------------------------------------------------------------------


def folder_with_config(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return tmp_path


@pytest.mark.parametrize("config", [transformers.GPT2Config(), transformers.OPTConfig(), transformers.BertConfig()])
@pytest.mark.parametrize("automatic", ["AutoModel", "AutoModelForCausalLM"])
def test_an_unsupported_model_is_refused_from_its_config(tmp_path, config, automatic):
    """The folder has no weights: an attempt to load them would end in an OSError."""
    folder, automatic = folder_with_config(tmp_path, config), getattr(attention_sinks, automatic)
    refused(NotImplementedError, lambda: automatic.from_pretrained(folder), config.model_type, "supported_model_types")
    refused(NotImplementedError, lambda: automatic.from_config(config), config.model_type, "supported_model_types")


def test_an_unsupported_model_is_not_injected():
    model = LlamaForCausalLM(tiny_config())
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64))
    before = [dict(vars(module)) for module in gpt2.modules()]
    refused(NotImplementedError, lambda: inject_attention_sinks(gpt2), "gpt2", "supported_model_types")
    assert [dict(vars(module)) for module in gpt2.modules()] == before
    assert inject_attention_sinks(model) is model


def test_close_matches_are_named():
    class LamaConfig(LlamaConfig):
        model_type = "lama"

    class LamaForCausalLM(LlamaForCausalLM):
        config_class = LamaConfig

    model = LamaForCausalLM(LamaConfig(**{**tiny_config().to_dict(), "model_type": "lama"}))
    refused(NotImplementedError, lambda: inject_attention_sinks(model), "'lama'", "llama", "attention_sinks/")


@pytest.mark.parametrize("config", [transformers.T5Config(), transformers.BartConfig()])
def test_encoder_decoders_are_refused(tmp_path, config):
    folder = folder_with_config(tmp_path, config)
    message = refused(NotImplementedError, lambda: attention_sinks.AutoModel.from_pretrained(folder), config.model_type)
    assert "encoder-decoder" in message


@pytest.mark.parametrize("thing", [None, "meta-llama/Llama-2-7b-hf", torch.nn.Linear(2, 2), LlamaConfig], ids=str)
def test_what_is_no_model(thing):
    with pytest.raises((*BAD, NotImplementedError), match="model"):
        inject_attention_sinks(thing)


def test_a_cache_needs_an_injected_model():
    refused(BAD, lambda: AttentionSinkKVCache(tiny_llama()), "model", "inject_attention_sinks")


def test_removing_from_a_plain_model_changes_nothing():
    model = tiny_llama()
    before = [dict(vars(module)) for module in model.modules()]
    try:
        attention_sinks.remove_attention_sinks(model)
    except BAD as error:
        assert "inject" in str(error)
    assert [dict(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("sinks, window, trained, warned", [(4, 60, 64, True), (4, 59, 64, False)])
def test_a_cache_beyond_the_trained_length_warns_once(messages, sinks, window, trained, warned):
    model = inject_attention_sinks(tiny_llama(max_position_embeddings=trained), sinks, window)
    for _ in range(3):
        stream(model, random_ids(1, 5))
    about = messages.about("attention_sink_window_size", str(trained), str(sinks + window + 1))
    assert len(about) == warned, messages.texts
