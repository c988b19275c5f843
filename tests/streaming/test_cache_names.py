"""The cache by either of its names, `cache` and `past_key_values`, with every supported Transformers."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaForSequenceClassification, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, remove_attention_sinks
from attention_sinks.generation.overrides import prepare_inputs
from attention_sinks.streaming.bound_cache import BoundCache
from attention_sinks.versions import CACHE, CACHE_NAMES, peft_reads, with_cache_named
from support.helpers import (
    BAD,
    S,
    W,
    assert_close,
    assert_same_state,
    random_ids,
    refused,
    state_of,
    stream,
    streaming_llama,
    tiny_llama,
)
from support.zoo import MODELS

pytestmark = pytest.mark.each_release

IDS = random_ids(1, 30)
NAMES = pytest.mark.parametrize("name", CACHE_NAMES)
GREEDY = {"max_new_tokens": 25, "do_sample": False}


def assert_answers_to_both(output, cache):
    """By attribute and by key, as outputs of Transformers 5.24 do."""
    for name in CACHE_NAMES:
        assert getattr(output, name) is cache and output[name] is cache and output.get(name) is cache
        assert name in output
    assert sum(value is cache for value in output.values()) == sum(value is cache for value in output.to_tuple()) == 1


# ---- calls of the model


@pytest.mark.parametrize("animal", MODELS)
def test_every_architecture_streams_by_either_name(animal):
    model = inject_attention_sinks(animal.build(), S, W)
    found = []
    for name in CACHE_NAMES:
        cache = AttentionSinkKVCache(model)
        with torch.no_grad():
            outputs = [model(ids, **{name: cache}) for ids in (IDS[:, :20], IDS[:, 20:21], IDS[:, 21:])]
            output = model.base_model(input_ids=IDS[:, :1], **{name: (fork := copy.deepcopy(cache))})
        assert cache.get_seq_length() == 30
        assert_answers_to_both(output, fork)
        for output in outputs:
            assert_answers_to_both(output, cache)
        found.append(torch.cat([output.logits for output in outputs], dim=1))
    assert torch.equal(*found)


@NAMES
@pytest.mark.parametrize("model_class", [LlamaModel, LlamaForSequenceClassification])
def test_the_base_model_and_other_heads(name, model_class):
    model = inject_attention_sinks(tiny_llama(model_class=model_class, pad_token_id=0), S, W)
    cache = AttentionSinkKVCache(model)
    with torch.no_grad():
        assert_answers_to_both(model(IDS, **{name: cache}), cache)
        output = model.base_model(IDS[:, :1], **{name: cache})
    assert_answers_to_both(output, cache)
    assert cache.tokens_seen.tolist() == [31]


@NAMES
def test_none_is_not_given(name):
    model, other = streaming_llama(), next(known for known in CACHE_NAMES if known != name)
    cache = AttentionSinkKVCache(model)
    model(IDS, **{name: cache, other: None})
    model(IDS, **{name: None})
    model.generate(IDS[:, :3], **{name: cache, other: None}, **GREEDY)
    assert cache.tokens_seen.tolist() == [30 + 3 + 24]


@NAMES
def test_positional(name):
    """Where a signature has the cache, it may stand without a name."""
    model = streaming_llama()
    cache = AttentionSinkKVCache(model)
    model(IDS, None, None, cache)
    assert cache.tokens_seen.tolist() == [30]
    with pytest.raises((TypeError, ValueError)):
        model(IDS, None, None, cache, **{name: cache})
    assert cache.tokens_seen.tolist() == [30]


@NAMES
def test_compiled_steps(name):
    model = streaming_llama()
    expected, _ = stream(model, IDS)
    _, cache = stream(model, IDS[:, :20])
    forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        for column in range(20, 30):
            output = forward(IDS[:, column : column + 1], **{name: cache})
            assert_close(output.logits[:, 0], expected[:, column])
            assert output.cache is output.past_key_values is cache


def test_outputs_can_be_copied_and_pickled():
    model = streaming_llama()
    with torch.no_grad():
        output = model(IDS, use_cache=False)
    for again in (copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert isinstance(again, CausalLMOutputWithPast) and torch.equal(again.logits, output.logits)
        assert again.cache is again.past_key_values is None
    output.cache = cache = AttentionSinkKVCache(model)
    assert_answers_to_both(output, cache)


# ---- generate


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"num_beams": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"assistant_model": True},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4, "custom_generate": attention_sinks.contrastive_search},
    "not compiled": {"disable_compile": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_generate_by_either_name(mode):
    options, model, found = {**GREEDY, **MODES[mode], "return_dict_in_generate": True}, streaming_llama(), []
    if "assistant_model" in options:
        options["assistant_model"] = inject_attention_sinks(tiny_llama(seed=1), S, W)
    for name in CACHE_NAMES:
        _, cache = stream(model, IDS[:, :10])
        if mode == "beams":
            cache.batch_repeat_interleave(2)
        torch.manual_seed(0)
        output = model.generate(IDS, attention_mask=torch.ones_like(IDS), **{name: cache}, **options)
        assert_answers_to_both(output, cache)
        found.append(output.sequences)
    assert torch.equal(*found)


def test_a_cache_that_generate_makes_is_handed_back_by_either_name():
    output = streaming_llama().generate(IDS, return_dict_in_generate=True, **GREEDY)
    assert isinstance(output.cache, AttentionSinkKVCache)
    assert_answers_to_both(output, output.cache)


@NAMES
def test_a_loop_of_ones_own_over_the_methods_of_generate(name):
    """As decoding loops outside of Transformers are written, which keep the cache among `model_kwargs`."""
    model = streaming_llama()
    expected = model.generate(IDS, **GREEDY)
    ids, model_kwargs = IDS, {name: AttentionSinkKVCache(model), "use_cache": True}
    with torch.no_grad():
        for columns in [30] + [1] * 24:
            inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=columns, **model_kwargs)
            output = model(**inputs)
            model_kwargs = model._update_model_kwargs_for_generation(output, model_kwargs)
            ids = torch.cat([ids, output.logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids, expected)
    assert [known for known in CACHE_NAMES if known in model_kwargs] == [CACHE]


# ---- PEFT


@NAMES
def test_an_adapter_around_the_model(name):
    adapted = get_peft_model(streaming_llama(), LoraConfig(target_modules=["q_proj"])).eval()
    cache = AttentionSinkKVCache(adapted)
    with torch.no_grad():
        assert_answers_to_both(adapted(input_ids=IDS, **{name: cache}), cache)
    adapted.generate(input_ids=IDS[:, :1], **{name: cache}, **GREEDY)
    assert cache.tokens_seen.tolist() == [30 + 1 + 24]


@NAMES
def test_prompt_tuning_puts_its_prompt_once(name):
    """PEFT 0.21 looks for the cache under the old name, and would put its prompt before every token."""
    torch.manual_seed(0)
    model = streaming_llama()
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    cache = AttentionSinkKVCache(model)
    tuned.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **{name: cache}, **GREEDY)
    assert cache.tokens_seen.tolist() == [3 + 30 + 24]


@NAMES
def test_prompt_tuning_is_handed_the_cache_by_the_name_it_reads(name):
    """A PEFT that knows the new name is given it."""

    class Peft:
        active_peft_config = SimpleNamespace(is_prompt_learning=True)

    knows = {
        "cache": lambda self, inputs: inputs.get(CACHE_NAMES[0] if CACHE == "cache" else "past_key_values"),
        "past_key_values": lambda self, inputs: inputs.get("past_key_values"),
    }
    Peft.prepare_inputs_for_generation = knows[name]
    expected = peft_reads(Peft.prepare_inputs_for_generation)
    model = streaming_llama()
    cache = AttentionSinkKVCache(model)
    model.__dict__["prepare_inputs_for_generation"] = Peft().prepare_inputs_for_generation
    inputs = prepare_inputs(model, IDS, attention_mask=torch.ones_like(IDS), **{CACHE: cache})
    assert inputs[expected] is cache and expected in CACHE_NAMES
    assert [known for known in CACHE_NAMES if known in inputs] == [expected]


# ---- what is refused, and what is not said


def test_both_names_are_refused():
    model = streaming_llama()
    _, cache = stream(model, IDS)
    before, both = state_of(cache), {"cache": cache, "past_key_values": AttentionSinkKVCache(model)}
    words = ["cache=AttentionSinkKVCache", "past_key_values=AttentionSinkKVCache", "pass cache alone"]
    for call in (
        lambda: model(IDS[:, :1], **both),
        lambda: model.model(IDS[:, :1], **both),
        lambda: model.generate(IDS[:, :1], **both, **GREEDY),
        lambda: model(IDS[:, :1], cache=cache, past_key_values=cache),
    ):
        refused(ValueError, call, *words)
    assert_same_state(cache, before)


@NAMES
@pytest.mark.parametrize(
    "foreign", [((torch.zeros(1), torch.zeros(1)),), {}, "cache"], ids=lambda it: type(it).__name__
)
def test_what_is_no_cache_is_refused_by_either_name(name, foreign):
    model = streaming_llama()
    refused(BAD, lambda: model(IDS, **{name: foreign}), "cache is a", type(foreign).__name__)
    refused(BAD, lambda: model.generate(IDS, **{name: foreign}, **GREEDY), "cache", type(foreign).__name__)
    assert_close(stream(model, IDS)[0], stream(streaming_llama(), IDS)[0], 0.0)


def test_nothing_of_ours_is_deprecated(messages):
    """Neither name makes Transformers warn: ours are calls with the name that the release knows."""
    model = streaming_llama()
    for name in CACHE_NAMES:
        _, cache = stream(model, IDS)
        output = model.generate(IDS[:, :1], **{name: cache}, return_dict_in_generate=True, **GREEDY)
        cache = output[CACHE]
        cache.crop(-1)
        torch.compile(model.forward, backend="eager")(IDS[:, :1], **{name: cache})
    assert not messages.about("deprecated"), messages.about("deprecated")


def test_removal_takes_the_second_name_away_with_everything_else():
    model, plain = streaming_llama(), tiny_llama()
    remove_attention_sinks(model)
    assert type(model(IDS)) is type(plain(IDS))
    assert "generate" not in model.__dict__ and "forward" not in model.__dict__


def test_arguments_are_named_as_the_release_names_them():
    assert with_cache_named({"a": 1}) == {"a": 1}
    assert (
        with_cache_named({"cache": 1, "a": 2}) == with_cache_named({"past_key_values": 1, "a": 2}) == {CACHE: 1, "a": 2}
    )
    assert with_cache_named({"cache": None, "past_key_values": None}) == {CACHE: None}


def test_the_host_may_hand_more_than_today():
    """Releases add arguments to what they call of a cache and of a layer, as 5.24 did to `update`."""
    model = streaming_llama()
    _, cache = stream(model, IDS)
    more = {"added_by_a_later_release": 1}
    for asked in (BoundCache(None, None, (), "sdpa"), BoundCache(cache, None, (), "sdpa"), cache.layers[0]):
        assert asked.get_mask_sizes(1, 0, **more) == (1, 0)
        assert asked.get_seq_length(0, **more) == (0 if isinstance(asked, BoundCache) else 30)
    assert cache.get_seq_length(0, **more) == 30
    assert BoundCache(cache, None, (), "sdpa").get_query_offset(0, **more) == 0
    refused(RuntimeError, lambda: cache.get_mask_sizes(1, 0, **more), "inject_attention_sinks(model)")
    refused(RuntimeError, lambda: cache.get_query_offset(0, **more), "inject_attention_sinks(model)")
    states = torch.zeros(1, 2, 1, 16)
    refused(RuntimeError, lambda: cache.update(states, states, 0, kwargs={}), "inject_attention_sinks(model)")
