"""A report by a config alone says what the injected model then does, for every architecture."""

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.architecture.setup import setup_of
from attention_sinks.cache.sink_layer import SinkLayer
from attention_sinks.report.report import describe
from attention_sinks.report.source import Source
from attention_sinks.versions import transformers_release
from support.helpers import random_ids, refused
from support.zoo import ZOO, animal_of, config_of

SINKS = 4


def described(animal):
    return describe(Source("tiny", "tiny"), config_of(animal), SINKS, None)


def cache_after_a_call(model, cache_dtype=None):
    cache = AttentionSinkKVCache(model, attention_sink_cache_dtype=cache_dtype)
    with torch.no_grad():
        model(input_ids=random_ids(1, 3), cache=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("animal", ZOO, ids=str)
def test_a_report_says_what_injection_then_does(animal):
    if "aria_text" in str(animal) and transformers_release() < (5, 24):
        pytest.skip("older releases of Transformers count the tokens of Aria's experts on the CPU, so it needs weights")
    report = described(animal)
    window = min(10, report.largest_window or 10)
    model = animal.auto.from_config(config_of(animal), dtype=torch.float32).eval()
    cache = cache_after_a_call(inject_attention_sinks(model, SINKS, window))
    assert cache.settings.window_size == window
    assert cache.nbytes == report.footprints["float32"].at(window)
    setup = setup_of(model)
    assert sorted(index for indices in report.layers.values() for index in indices) == list(range(len(cache.layers)))
    for content, indices in report.layers.items():
        for index in indices:
            layer, reach = cache.layers[index], setup.reaches(setup.settings)[index]
            assert isinstance(layer, SinkLayer) == ("sinks" in content or "tokens" in content)
            assert ("sinks" in content) == (isinstance(layer, SinkLayer) and reach.sink_size == SINKS)
            assert ("states" in content) == bool(setup.kinds[index].states)
    assert animal.implementations[0] in report.attention
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "model_type",
    ["deepseek_v3", "falcon_h1", "gemma3_text", "jamba", "llama", "minimax", "qwen3_next", "recurrent_gemma"],
)
def test_the_same_in_half_precision_where_states_may_stay_in_single_and_for_a_cache_that_rounds(model_type):
    animal, window = animal_of(model_type), 4
    model = animal.auto.from_config(config_of(animal), dtype=torch.bfloat16).eval()
    inject_attention_sinks(model, SINKS, window)
    found = described(animal).footprints
    assert cache_after_a_call(model).nbytes == found["bfloat16"].at(window)
    for cache_dtype in ("int8", "int8-int4"):
        if cache_dtype in found:
            assert cache_after_a_call(model, cache_dtype).nbytes == found[cache_dtype].at(window)
        else:
            with pytest.raises((NotImplementedError, ValueError), match="attention_sink_cache_dtype"):
                cache_after_a_call(model, cache_dtype)
    assert "int8" in found


def test_what_is_known_of_a_plain_model():
    report = described(animal_of("llama"))
    assert report.positions == "rotary (halves)" and report.layers == {"sinks and window": [0, 1]}
    assert (report.largest_window, report.window) == (256 - SINKS - 1, 256 - SINKS - 1)
    assert "trained on texts of 256 tokens" in report.largest_window_reason


@pytest.mark.parametrize(
    ("changes", "window", "words"),
    [
        ({"sliding_window": 20}, 20 - SINKS - 1, "every layer sees 20 tokens"),
        ({"sliding_window": None}, 256 - SINKS - 1, "trained on texts of 256 tokens"),
        ({"sliding_window": None, "max_position_embeddings": 100_000}, 100_000 - SINKS - 1, "100000"),
    ],
)
def test_the_largest_useful_window_and_why(changes, window, words):
    config = config_of(animal_of("mistral"))
    config.update(changes)
    report = describe(Source("tiny", "tiny"), config, SINKS, None)
    assert report.largest_window == window and words in report.largest_window_reason
    assert report.window == min(1020, window)


def test_a_limit_of_the_architecture_is_a_reason():
    report = described(animal_of("gptj"))
    assert "table of positions" in report.largest_window_reason


def test_no_window_is_left_beside_so_many_sinks():
    config = config_of(animal_of("mistral"))
    config.update({"sliding_window": 9})
    refused(ValueError, lambda: describe(Source("tiny", "tiny"), config, 8, None), "attention_sink_size=8", "sinks")
