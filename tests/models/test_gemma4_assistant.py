"""Assistants of Gemma 4 read the keys of the model they draft for."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attention_sinks import inject_attention_sinks
from attention_sinks.streaming import forward
from support.helpers import assert_close, cut, largest_difference, random_ids, stream
from support.zoo import ZOO, config_of_type

S, W = 4, 12
IDS = random_ids(1, 60)
ANIMALS = [a for a in ZOO if a.model_type in ("gemma4_text", "gemma4_unified_text", "gemma4")]
ASSISTANTS = {"gemma4_text": "gemma4_assistant", "gemma4_unified_text": "gemma4_unified_assistant"}

pytestmark = pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.model_type)


def shared(model, ids, **options):
    with torch.no_grad():
        return model(ids, return_shared_kv_states=True, use_cache=True, **options).shared_kv_states


def narrow(animal, *layer_types):
    """Layers of one kind before those of another: the keys of the first depend on their own token alone."""
    changes = {"num_hidden_layers": len(layer_types), "layer_types": list(layer_types), "num_kv_shared_layers": 0}
    return type(animal)(**{**vars(animal), "config": {**animal.config, **changes, "per_layer_config": None}})


def test_short_streams_share_what_plain_transformers_shares(animal):
    plain, model = shared(animal.build(), IDS[:, :8]), shared(inject_attention_sinks(animal.build(), S, W), IDS[:, :8])
    assert set(model) == {"full_attention", "sliding_attention"}
    for name in plain:  # nothing in newer releases, where no layer shares its keys within the model
        for states, right in zip(model[name], plain[name], strict=True):
            assert_close(states, right)


@pytest.mark.parametrize("calls", [[1], [60], [7, 1]])
def test_keys_are_where_an_assistant_must_see_them(animal, calls):
    """Recent keys at their columns, sinks as near as they are in the cache."""
    sees = {"full_attention": (S, W), "sliding_attention": (0, 8)}
    for first, second in (sees, reversed(sees)):
        narrowed = narrow(animal, first, second, first, "full_attention")
        narrowed.config["num_kv_shared_layers"] = 2
        model = inject_attention_sinks(narrowed.build(), S, W)
        _, cache = stream(model, IDS[:, :-1], cut(59, calls))
        keys, values = shared(model, IDS[:, -1:], cache=cache)[first]
        sinks, window = sees[first]
        visible = torch.cat([IDS[:, :sinks], IDS[:, 60 - window :]], dim=1)
        columns = torch.arange(60 - visible.shape[1], 60)[None]
        right = shared(narrowed.build(), visible, position_ids=columns)[first]
        assert_close(keys, right[0][:, :, -visible.shape[1] :])
        assert_close(values, right[1][:, :, -visible.shape[1] :])
        wrong = shared(narrowed.build(), visible, position_ids=columns + 1)[first]
        assert largest_difference(keys, wrong[0][:, :, -visible.shape[1] :]) > 1e-2


def test_tokens_that_were_taken_back_are_not_shared(animal):
    model = inject_attention_sinks(animal.build(), S, W)
    _, cache = stream(model, IDS[:, :50])
    cache.activate_past_recording()
    states = shared(model, IDS[:, 50:], cache=cache)
    cache.crop(-7)
    right = shared(model, IDS[:, 50:53], cache=stream(model, IDS[:, :50])[1])
    for name in right:
        assert_close(states[name][0], right[name][0])


@pytest.mark.parametrize("length", [5, 40])
def test_assisted_generation_is_greedy_generation(animal, length, monkeypatch):
    monkeypatch.setattr(forward, "CHUNK_SIZE", 32)  # so that the longer prompt is cut
    assistant = assistant_of(animal)
    model, prompt = inject_attention_sinks(animal.build(), S, W), random_ids(1, length)
    model.generation_config.eos_token_id = None
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 40, "do_sample": False}
    drafted = model.generate(prompt, assistant_model=assistant, **options)
    assert torch.equal(drafted, model.generate(prompt, **options))


def assistant_of(animal):
    model_type, layers = animal.text or animal.model_type, animal.config["num_hidden_layers"]
    own = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": layers}
    text = config_of_type(model_type, {**animal.config, **own})
    config = AutoConfig.for_model(ASSISTANTS[model_type], text_config=text, backbone_hidden_size=64)
    try:
        assistant = AutoModelForCausalLM.from_config(config).float().eval()
        assistant.generation_config.num_assistant_tokens = 4
        return assistant
    except ValueError as error:
        pytest.skip(f"this Transformers cannot build {config.model_type}: {error}")
