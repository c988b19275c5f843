"""Yi, StableLM-epoch and Qwen v1: old checkpoints load into classes of today and compute what they must."""

import json
import sys

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.legacy import register_legacy
from support.helpers import assert_close, random_ids, refused
from support.old_checkpoints import NO_TOKENS, OLD_LAYOUTS, SIZES, write_shards

IDS = random_ids(2, 40)
LAYOUTS = pytest.mark.parametrize("old", OLD_LAYOUTS.values(), ids=OLD_LAYOUTS)
CLEAN = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def load(folder, name="AutoModelForCausalLM", library=transformers, **options):
    return getattr(library, name).from_pretrained(folder, **options)


def all_weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@LAYOUTS
def test_an_old_checkpoint_loads_into_the_native_class(old, form, tmp_path):
    model, info = load(old.write(tmp_path, form), output_loading_info=True)
    assert {name: set(info[name]) for name in CLEAN} == CLEAN
    native = old.assembled()
    assert isinstance(model, type(native)) and model.config.model_type == old.model_type
    assert torch.equal(logits(model), logits(native))


@LAYOUTS
def test_old_names_of_the_config_are_translated(old, tmp_path):
    config = transformers.AutoConfig.from_pretrained(old.write(tmp_path))
    for name, value in old.native_config.items():
        assert getattr(config, name) == value, name
    assert isinstance(config, type(old.assembled().config)) and config.dtype == torch.float32
    assert not set(config.__dict__) & {"norm_eps", "rope_pct", "layer_norm_epsilon", "kv_channels", "rotary_emb_base"}


@pytest.mark.parametrize("trust", [None, False, True])
@LAYOUTS
def test_no_code_of_the_checkpoint_is_run(old, trust, tmp_path, monkeypatch):
    """Nor is anybody asked whether it may be."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    old.write(tmp_path)
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        loaded = load(tmp_path, name, trust_remote_code=trust)
        assert type(loaded).__module__.startswith("attention_sinks.")
    assert not any("old_code" in name for name in sys.modules)


@LAYOUTS
def test_saving_gives_an_old_checkpoint_again(old, tmp_path):
    """The same names in the config, the same names and tensors in the weights; it loads again."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    model = load(old.write(before))
    model.save_pretrained(after)
    assert isinstance(load(after), type(model)) and torch.equal(logits(load(after)), logits(model))
    weights = all_weights(after)
    assert weights.keys() == old.old_state().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in old.old_state().items())
    saved = json.loads((after / "config.json").read_text())
    for name, value in old.config.items():
        if value is not None:
            assert saved[name] == value, name
    assert saved["architectures"] == [old.language_model]


@LAYOUTS
def test_a_model_made_from_a_config_is_saved_and_loaded(old, tmp_path):
    config = transformers.CONFIG_MAPPING[old.model_type].from_dict({**SIZES, **NO_TOKENS, **old.config})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(model))
    assert load(tmp_path).config.to_diff_dict() == model.config.to_diff_dict()


@LAYOUTS
def test_the_bare_decoder(old, tmp_path):
    """Loaded from a language model, saved and loaded again."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    model, info = load(old.write(first), "AutoModel", output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) <= {"lm_head.weight"}
    model.save_pretrained(second)
    with torch.no_grad():
        expected = old.assembled().model(IDS).last_hidden_state
        for decoder in (model, load(second, "AutoModel")):
            assert torch.equal(decoder(IDS).last_hidden_state, expected)


@LAYOUTS
def test_other_heads_are_new_on_the_old_decoder(old, tmp_path):
    old.write(tmp_path, num_labels=3, pad_token_id=0)
    for head in old.heads:
        model, info = load(tmp_path, f"AutoModel{head}", output_loading_info=True)
        assert {name.split(".")[0] for name in info["missing_keys"]} <= {"score", "qa_outputs"}
        decoder = model.base_model.state_dict()
        for name, tensor in old.assembled(pad_token_id=0).model.state_dict().items():
            assert torch.equal(decoder[name], tensor), name


@LAYOUTS
def test_missing_and_unknown_weights_are_named(old, tmp_path):
    state = old.old_state()
    names = sorted(name for name in state if ".mlp." in name)
    state["transformer.visual.weight"] = state.pop(names[0])
    old.write(tmp_path, state=state)
    for name in ("AutoModelForCausalLM", "AutoModel"):
        message = refused(ValueError, lambda name=name: load(tmp_path, name), "missing weights: ", "mlp.", "visual")
        assert str(tmp_path) in message


@pytest.mark.parametrize("place", ["model.layers.0.self_attn", "transformer.h.0.attn", "transformer"])
@LAYOUTS
def test_stored_frequencies_are_left_out(old, place, tmp_path):
    """They follow from the config; what a checkpoint says is not even looked at."""
    old.write(tmp_path, state={**old.old_state(), f"{place}.rotary_emb.inv_freq": torch.ones(8)})
    assert torch.equal(logits(load(tmp_path)), logits(old.assembled()))


@LAYOUTS
def test_a_language_model_needs_its_head(old, tmp_path):
    state = {name: tensor for name, tensor in old.old_state().items() if "lm_head" not in name}
    old.write(tmp_path, state=state)
    refused(ValueError, lambda: load(tmp_path), "lm_head.weight")
    assert load(tmp_path, "AutoModel")


def test_key_mapping_cures_a_checkpoint_with_other_names(tmp_path):
    old = OLD_LAYOUTS["Yi"]
    old.write(tmp_path, state={name.replace("mlp.", "ffn."): tensor for name, tensor in old.old_state().items()})
    refused(ValueError, lambda: load(tmp_path), "mlp.", "ffn.")
    assert torch.equal(logits(load(tmp_path, key_mapping={r"\.ffn\.": ".mlp."})), logits(old.assembled()))


def test_yi_with_the_names_of_llama(tmp_path):
    old = OLD_LAYOUTS["Yi"]
    old.write(tmp_path, state=old.assembled().state_dict())
    assert torch.equal(logits(load(tmp_path)), logits(old.assembled()))


def test_one_file_without_an_index(tmp_path):
    old = OLD_LAYOUTS["qwen"]
    old.write(tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save(old.old_state(), tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load(tmp_path)), logits(old.assembled()))


def test_half_precision(tmp_path):
    old, native = OLD_LAYOUTS["qwen"], tmp_path / "native"
    old.assembled().save_pretrained(native)
    model = load(old.write(tmp_path), dtype=torch.bfloat16)
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(load(native, dtype=torch.bfloat16)))


@pytest.mark.parametrize("model_type", ["Yi", "qwen"])
def test_an_adapter_beside_an_old_checkpoint(model_type, tmp_path):
    """Its own keys are no reason to complain about the checkpoint's."""
    (tmp_path / "base").mkdir()
    base = load(OLD_LAYOUTS[model_type].write(tmp_path / "base"))
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load(tmp_path / "adapter")), logits(adapted))


@LAYOUTS
def test_layers_that_live_on_disk(old, tmp_path):
    places = {"model.layers.1": "disk"}
    for name in ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"):
        places[name] = "cpu"
    model = load(old.write(tmp_path), device_map=places, offload_folder=tmp_path / "disk")
    assert torch.equal(logits(model), logits(old.assembled()))


@pytest.mark.parametrize(
    "model_type, changes",
    [
        ("qwen", {"no_bias": False}),
        ("qwen", {"rotary_pct": 0.5}),
        ("qwen", {"scale_attn_weights": False}),
        ("stablelm_epoch", {"rotary_scaling_factor": 2.0}),
    ],
)
def test_what_the_native_class_does_not_compute_is_refused(model_type, changes, tmp_path):
    OLD_LAYOUTS[model_type].write(tmp_path, **changes)
    refused(ValueError, lambda: load(tmp_path), model_type, *changes, *changes.values())


def test_registering_again_changes_nothing(tmp_path):
    register_legacy()
    old = OLD_LAYOUTS["qwen"]
    assert torch.equal(logits(load(old.write(tmp_path))), logits(old.assembled()))


def test_native_types_are_left_alone(tmp_path):
    native = OLD_LAYOUTS["Yi"].assembled()
    native.save_pretrained(tmp_path)
    assert type(load(tmp_path)) is transformers.LlamaForCausalLM
    (tmp_path / "model.safetensors").unlink()
    write_shards({name: w for name, w in native.state_dict().items() if "mlp" not in name}, tmp_path, "safetensors")
    assert load(tmp_path, output_loading_info=True)[1]["missing_keys"]


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "AutoModel"])
@LAYOUTS
def test_an_old_checkpoint_streams(old, name, tmp_path):
    """Token by token what the native model, injected, gives in one call."""
    old.write(tmp_path)
    ids = random_ids(1, 70)
    native = inject_attention_sinks(old.assembled(), 4, 12)
    model = load(tmp_path, name, attention_sinks, attention_sink_size=4, attention_sink_window_size=12)
    with torch.no_grad():
        cache, states = None, []
        for part in ids.split([30, 1, 1, 38], dim=1):
            outputs = model(part, cache=cache, use_cache=True)
            cache = outputs.cache
            states.append(outputs[0])
        states = torch.cat(states, dim=1)
        assert_close(states if name.endswith("LM") else native.lm_head(states), native(ids).logits)
    assert cache.tokens_cached.tolist() == [16]


def test_generation_settings_of_an_old_release(tmp_path):
    """Names Transformers does not know stand in its file, as in Qwen's own."""
    old = OLD_LAYOUTS["qwen"]
    settings = {"chat_format": "raw", "stop_words_ids": [[63]], "max_new_tokens": 5, "do_sample": False}
    (old.write(tmp_path) / "generation_config.json").write_text(
        json.dumps({**settings, "transformers_version": "4.31.0"})
    )
    expected = old.assembled().generate(IDS, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(load(tmp_path).generate(IDS, attention_mask=torch.ones_like(IDS)), expected)


def test_qwen_sees_no_more_than_its_seq_length(tmp_path):
    folder = OLD_LAYOUTS["qwen"].write(tmp_path, seq_length=96)
    sizes = {"attention_sink_size": 4, "attention_sink_window_size": 91}
    model = load(folder, library=attention_sinks, **sizes)
    sizes["attention_sink_window_size"] = 92
    refused(ValueError, lambda: load(folder, library=attention_sinks, **sizes), 92, "seq_length=96", 91)
    refused(ValueError, lambda: AttentionSinkKVCache(model, 4, 92), 92, "seq_length=96", 91)


def test_qwen_without_tricks_for_long_texts_has_no_limit(tmp_path):
    folder = OLD_LAYOUTS["qwen"].write(tmp_path, seq_length=96, use_dynamic_ntk=False, use_logn_attn=False)
    assert load(folder, library=attention_sinks, attention_sink_window_size=200)
