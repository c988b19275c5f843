"""A model whose config or modules somebody changes while a cache lives: it is noticed, or refused with the reason."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.architecture.setup import setup_of
from attention_sinks.positions.frequencies import PlainFrequencies
from attention_sinks.positions.rotary import Rotary
from references.naive import naive_logits
from support.helpers import (
    LENGTH_DEPENDENT,
    TEETH,
    S,
    W,
    assert_close,
    assert_same_state,
    largest_difference,
    plain_logits,
    random_ids,
    refused,
    state_of,
    stream,
    streaming_llama,
    tiny_config,
    tiny_llama,
)
from support.zoo import MODELS, animal_of

ROOM, LENGTH = S + W + 1, 60


def other_rotary_module(model):
    model.model.rotary_emb = LlamaRotaryEmbedding(tiny_config(rope="linear"))


def other_frequencies(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq / 2


def frequencies_in_place(model):
    model.model.rotary_emb.inv_freq.div_(2)


def other_scaling(model):
    model.model.rotary_emb.attention_scaling = 1.5


CHANGES = (other_rotary_module, other_frequencies, frequencies_in_place, other_scaling)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("length", [1, 5], ids=["step", "call"])
def test_other_positions(change, length):
    """A stream cannot go on; new ones, and the same cache after a reset, have the new positions."""
    model, changed, ids = streaming_llama(), tiny_llama(), random_ids(1, LENGTH)
    change(changed)
    of_short_text = plain_logits(changed, ids[:, :ROOM])
    expected, _ = stream(inject_attention_sinks(changed, S, W), ids)
    assert_close(expected[:, :ROOM], of_short_text)
    former, cache = stream(model, ids, [LENGTH - 1, 1])
    assert largest_difference(former, expected) > TEETH
    unused, before = AttentionSinkKVCache(model), state_of(cache)
    change(model)
    refused(ValueError, lambda: stream(model, ids[:, :length], cache=cache), "rotary", "AttentionSinkKVCache(model)")
    assert_same_state(cache, before)
    for streams in (None, unused, cache):
        if streams is cache:
            cache.reset()
        assert_close(stream(model, ids, [30, 1, 29], cache=streams)[0], expected)


@pytest.mark.parametrize("rope", LENGTH_DEPENDENT)
def test_other_rope_parameters_where_frequencies_follow_from_the_length(rope):
    model, ids = streaming_llama(**LENGTH_DEPENDENT[rope]), random_ids(1, LENGTH)
    _, cache = stream(model, ids)
    if rope == "dynamic":
        model.config.rope_parameters["factor"] = 8.0  # in place
    else:
        longer = [2 * factor for factor in model.config.rope_parameters["long_factor"]]
        model.config.rope_parameters = {**model.config.rope_parameters, "long_factor": longer}
    refused(ValueError, lambda: stream(model, ids[:, :1], cache=cache), "config", "AttentionSinkKVCache(model)")


@pytest.mark.parametrize("animal", MODELS)
def test_a_model_that_nobody_has_changed_is_not_read_anew(animal):
    """Looking for changes is quick only where config and frequencies are what was read."""
    model = inject_attention_sinks(animal.build(), S, W)
    setup = setup_of(model)
    _, cache = stream(model, random_ids(1, 8), [6, 1, 1])
    tables = list(setup.tables.known.values())
    assert cache.serves(setup, 1) and tables
    stream(model, random_ids(1, 1), cache=cache)
    assert all(one is other for one, other in zip(setup.tables.known.values(), tables, strict=True))
    if any(isinstance(position, Rotary) for position in tables[0].positions):
        assert len(setup.sources) or isinstance(tables[0].positions[0].frequencies.holder, PlainFrequencies)


def test_what_changes_no_position_is_no_reason():
    """Another object with the same numbers, a move to where it is, and parts of the config that streams do not use."""
    model, ids = streaming_llama(), random_ids(1, LENGTH)
    expected, _ = stream(streaming_llama(), ids)
    logits, cache = stream(model, ids[:, :40])
    model.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    more, _ = stream(model, ids[:, 40:45], [1, 4], cache=cache)
    model.config.use_cache = not model.config.use_cache
    model.config.rope_parameters = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}  # read by nobody now
    rest, _ = stream(model.to("cpu", torch.float32), ids[:, 45:], [1, 1, 13], cache=cache)
    assert_close(torch.cat([logits, more, rest], dim=1), expected)


@pytest.mark.parametrize("window", [6, 20])
def test_another_native_window(window):
    """Layers that slide beside full ones: new caches see what a model with this window sees, older ones are refused."""
    animal, ids = animal_of("gemma3_text"), random_ids(1, LENGTH)
    model = inject_attention_sinks(animal.build(), S, 40)
    _, cache = stream(model, ids)
    unused = AttentionSinkKVCache(model)
    model.config.sliding_window = window
    other = animal.build()
    other.config.sliding_window = window
    assert_close(stream(model, ids[:, :40], [30, 1, 9])[0], plain_logits(other, ids[:, :40]))
    for made_before in (cache, unused):
        refused(ValueError, lambda made=made_before: stream(model, ids, cache=made), "sliding_window")


def test_a_native_window_that_all_layers_have():
    """It has to hold sinks and window, which a cache made before may exceed."""
    model, ids = inject_attention_sinks(animal_of("mistral", sliding_window=30).build(), S, 20), random_ids(1, LENGTH)
    _, cache = stream(model, ids)
    model.config.sliding_window = 16
    refused(ValueError, lambda: stream(model, ids[:, :1], cache=cache), "sliding_window", "AttentionSinkKVCache(model)")
    assert AttentionSinkKVCache(model).settings.visible_size == 16
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    assert_close(logits, stream(model, ids)[0])


def test_layers_that_rotate_no_longer():
    model = inject_attention_sinks(animal_of("smollm3").build(), S, W)
    ids, unused = random_ids(1, 10), AttentionSinkKVCache(model)
    model.config.no_rope_layers = [1 - rotates for rotates in model.config.no_rope_layers]
    refused(ValueError, lambda: stream(model, ids, cache=unused), "config", "AttentionSinkKVCache(model)")


def test_a_shorter_list_of_layers():
    """Transformers runs those that are there, and so do streams: what is left saw every token."""
    model, shorter, ids = streaming_llama(), tiny_llama(), random_ids(LENGTH)
    shorter.model.layers = shorter.model.layers[:1]
    _, cache = stream(model, ids[None, :40])
    model.model.layers = model.model.layers[:1]
    expected = naive_logits(shorter, ids, S, W)
    assert_close(stream(model, ids[None, 40:], [1, 19], cache=cache)[0][0], expected[40:])
    assert_close(stream(model, ids[None], [40, 20])[0][0], expected)
    model.config.num_hidden_layers = 1
    refused(ValueError, lambda: stream(model, ids[None, :1], cache=cache), "layers")


def test_a_model_cast_between_compiled_steps():
    """A graph is made anew for another dtype, and sees that the frequencies are others."""
    model, ids = streaming_llama(), random_ids(1, 30)
    _, cache = stream(model, ids)
    step = torch.compile(model.forward, backend="eager")
    with torch.no_grad():
        step(ids[:, :1], cache=cache)
        model.bfloat16()
        refused(ValueError, lambda: step(ids[:, :1], cache=cache), torch.float32, torch.bfloat16)
