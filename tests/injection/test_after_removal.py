"""A cache whose model has lost its attention sinks says so, is as it was, and goes on once they are back."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import (
    AttentionSinkKVCache,
    StreamingChat,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
)
from attention_sinks.architecture.setup import setup_of
from attention_sinks.versions import CACHE
from references.replay import replay_logits
from support.helpers import S, W, assert_close, assert_same_state, random_ids, refused, state_of, stream, tiny_llama
from support.toy_tokenizers import word_tokenizer
from support.zoo import animal_of

IDS = random_ids(60)
TYPES = [
    "llama",
    "gemma3_text",
    "bloom",
    "mpt",
    "falcon",
    "gptj",
    "deepseek_v3",
    "bamba",
    "lfm2",
    "falcon_h1",
    "zamba2",
]
TYPES += ["qwen3_next", "nemotron_h", "recurrent_gemma", "qwen3_5"]
CURE = ["a model without them", "inject_attention_sinks(model)"]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_cache_of_a_model_that_is_plain_again(model_type):
    animal, cache = animal_of(model_type), None
    model = animal.build()
    with attention_sinks_injected(model, S, W):
        has_states = setup_of(model).has_states
        _, cache = stream(model, IDS[None, :30])
    before, ids = state_of(cache), IDS[None, 30:].clamp(min=1)
    calls = {
        "step": lambda: model(ids[:, :1], **{CACHE: cache}),
        "several": lambda: model(ids, **{CACHE: cache}),
        "masked": lambda: model(ids, attention_mask=torch.ones(1, 60, dtype=torch.long), **{CACHE: cache}),
        "4D": lambda: model(ids, attention_mask=torch.zeros(1, 1, 30, 60), **{CACHE: cache}),
        "generate": lambda: model.generate(
            ids, attention_mask=torch.ones(1, 60, dtype=torch.long), **{CACHE: cache}, max_new_tokens=3
        ),
    }
    for name, call in calls.items():
        with torch.no_grad():
            if name == "4D" and model_type in ("bloom", "mpt"):  # which know no such masks
                continue
            refused(RuntimeError, call, *CURE)
        assert_same_state(cache, before)
    if not has_states:
        cache.activate_past_recording()
        refused(ValueError, lambda: cache.crop(-1), "no attention sinks", "inject_attention_sinks(model)")
        cache.deactivate_past_recording()
    inject_attention_sinks(model, S, W)
    logits, _ = stream(model, IDS[None, 30:], [1] * 10 + [20], copy.deepcopy(cache))
    assert_close(logits[0], replay_logits(animal.build(), IDS, S, W)[30:])


def test_a_fresh_cache_of_a_model_that_is_plain_again():
    for model_type in ("llama", "bamba"):
        model = inject_attention_sinks(animal_of(model_type).build(), S, W)
        cache = AttentionSinkKVCache(model)
        remove_attention_sinks(model)
        refused(RuntimeError, lambda model=model, cache=cache: model(IDS[None], **{CACHE: cache}), *CURE)
        refused(ValueError, lambda model=model: AttentionSinkKVCache(model), "inject_attention_sinks(model)")


def test_saving_works_and_loading_says_what_is_missing(tmp_path):
    model, path = inject_attention_sinks(tiny_llama(), S, W), tmp_path / "cache"
    expected, _ = stream(model, IDS[None])
    _, cache = stream(model, IDS[None, :30])
    remove_attention_sinks(model)
    cache.save(path)
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), "inject_attention_sinks(model)")
    loaded = AttentionSinkKVCache.load(path, inject_attention_sinks(model, 1, 9))
    assert_close(stream(model, IDS[None, 30:], cache=loaded)[0], expected[:, 30:])


def test_a_chat_of_a_model_that_is_plain_again(tmp_path):
    model = inject_attention_sinks(tiny_llama(), S, W)
    options = GenerationConfig(max_new_tokens=5, do_sample=False)
    chat, other = (StreamingChat(model, word_tokenizer(), generation_config=options) for _ in range(2))
    said = [["".join(other.send(text)) for text in ("w1 w2", "w3")], "".join(chat.send("w1 w2"))]
    assert said[0][0] == said[1]
    before = state_of(chat.cache)
    remove_attention_sinks(model)
    refused(RuntimeError, lambda: list(chat.send("w3")), *CURE)
    assert_same_state(chat.cache, before)
    inject_attention_sinks(model, S, W)
    assert "".join(chat.send("w3")) == said[0][1]
