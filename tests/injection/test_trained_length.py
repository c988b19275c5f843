"""Warnings about windows that are too large for what the model was trained on come where they are true, and once."""

import pytest
import torch
from transformers import AutoConfig

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.architecture.trained_length import trained_length
from support.helpers import ROPES, TEETH, largest_difference, plain_logits, random_ids, tiny_config, tiny_llama

LENGTHS = {  # rotary parameters and max_position_embeddings -> how long the texts were
    "none": ({"rope_type": "default"}, 4096, 4096),
    "Vicuna-16k": ({"rope_type": "linear", "factor": 4.0}, 4096, 16384),
    "Qwen2.5": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
    "DeepSeek-V3": ({"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840, 163840),
    "Llama 3.1": (
        {**ROPES["llama3"], "factor": 8.0, "original_max_position_embeddings": 8192},
        131072,
        131072,
    ),
    "longrope": ({**ROPES["longrope"], "original_max_position_embeddings": 4096, "factor": 32.0}, 131072, 131072),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 4096, 4096),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_trained_length(name):
    rope, positions, length = LENGTHS[name]
    assert trained_length(tiny_config(rope, max_position_embeddings=positions)) == length


def test_trained_length_of_kinds_of_layers():
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    layers = ["sliding_attention", "full_attention"]
    values = {"num_hidden_layers": 2, "layer_types": layers, "rope_parameters": rope, "max_position_embeddings": 64}
    assert trained_length(AutoConfig.for_model("gemma3_text", **values)) == 512


def test_a_config_without_a_length():
    assert trained_length(AutoConfig.for_model("bloom")) is None


@pytest.mark.parametrize("name, sinks", [("linear", 4), ("yarn", 5)])
def test_a_warning_only_beyond_the_stretched_length(name, sinks, messages):
    rope = {**ROPES[name], "factor": 4.0}
    model = tiny_llama(rope=rope, max_position_embeddings=64)
    inject_attention_sinks(model, sinks, 255 - sinks)
    assert not messages.about("trained on")
    AttentionSinkKVCache(model, sinks, 256 - sinks)
    inject_attention_sinks(model, sinks, 256 - sinks)
    assert len(messages.about("query see 257", "trained on 256", f"at most {255 - sinks}")) == 1, messages.texts


@pytest.mark.parametrize("name, changes", [("dynamic", {"max_position_embeddings": 48}), ("longrope", {})])
def test_a_warning_where_short_texts_are_not_plain(name, changes, messages):
    rope = {**ROPES[name], "original_max_position_embeddings": 48} if name == "longrope" else name
    ids, changes = random_ids(1, 20), {"rope": rope, "max_position_embeddings": 192, **changes}
    plain = plain_logits(tiny_llama(**changes), ids)
    model = inject_attention_sinks(tiny_llama(**changes), 4, 43)
    assert not messages.about("rope_type")
    with torch.no_grad():
        assert largest_difference(model(ids).logits, plain) < 1e-4
        cache = AttentionSinkKVCache(model, 4, 44)
        assert largest_difference(model(ids, cache=cache).logits, plain) > TEETH
    inject_attention_sinks(model, 4, 44)
    assert len(messages.about("query see 49", f"rope_type='{name}'", "up to 48", "at most 43")) == 1, messages.texts
