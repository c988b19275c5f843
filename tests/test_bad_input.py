"""Wrong arguments: the message names the argument, the value and the cure, and the cache is as it was."""

import json
import re

import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from helpers import (
    assert_close,
    assert_same_state,
    assert_tokens_follow,
    random_ids,
    randomise,
    state_of,
    stream,
    tiny_config,
    tiny_llama,
)
from naive import naive_logits

S, W = 4, 12
BAD = (TypeError, ValueError)
CURE = r"(?i)\b(pass|use|give|set|must|make|create|call|choose|instead|expected|leave|one of|at least|reset)"


@pytest.fixture
def model():
    return inject_attention_sinks(tiny_llama(), S, W)


def refused(kind, call, *words):
    """The call raises this kind of error; its message has all the words and says what to do."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    assert re.search(CURE, message), f"no cure in {message!r}"
    return message


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


# --- caches -----------------------------------------------------------------------------------------------------------


def used(cache, model):
    stream(model, random_ids(1, 30), cache=cache)
    return cache


FOREIGN = {
    "dynamic": lambda: DynamicCache(config=tiny_config()),
    "dynamic, used": lambda: used(DynamicCache(config=tiny_config()), tiny_llama()),
    "static": lambda: StaticCache(config=tiny_config(), max_cache_len=40),
    "tuple": lambda: tuple((torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16)) for _ in range(2)),
    "another seed": lambda: AttentionSinkKVCache(inject_attention_sinks(tiny_llama(seed=1), S, W)),
    "another depth": lambda: AttentionSinkKVCache(inject_attention_sinks(tiny_llama(num_hidden_layers=3), S, W)),
    "another head size": lambda: AttentionSinkKVCache(inject_attention_sinks(tiny_llama(head_dim=8), S, W)),
    "dense": lambda: AttentionSinkKVCache(inject_attention_sinks(tiny_llama(), S, W, "dense")),
}


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_caches(model, foreign, call):
    cache, ids = FOREIGN[foreign](), random_ids(1, 5)
    if call == "forward":
        refused(BAD, lambda: model(ids, past_key_values=cache), "past_key_values", type(cache).__name__)
    else:
        columns = 0 if isinstance(cache, tuple) else cache.get_seq_length()
        ids = random_ids(1, int(columns) + 5)
        refused(BAD, lambda: model.generate(ids, past_key_values=cache, max_new_tokens=5), "past_key_values")


def test_a_used_cache_of_another_model(model):
    other = inject_attention_sinks(tiny_llama(seed=1), S, W)
    cache = used(AttentionSinkKVCache(other), other)
    before = state_of(cache)
    refused(BAD, lambda: model(random_ids(1, 1), past_key_values=cache), "past_key_values", "AttentionSinkKVCache")
    assert_same_state(cache, before)


def test_a_cache_of_another_prefill_mode(model):
    cache = used(AttentionSinkKVCache(model), model)
    before = state_of(cache)
    inject_attention_sinks(model, S, W, "dense")
    refused(BAD, lambda: model(random_ids(1, 1), past_key_values=cache), "past_key_values", "streaming", "dense")
    assert_same_state(cache, before)


# --- calls ------------------------------------------------------------------------------------------------------------


def call_with(**options):
    return lambda model, cache: model(**options, past_key_values=cache)


ONE = random_ids(2, 1)
FIVE = random_ids(2, 5)
ONES = torch.ones(2, 45, dtype=torch.long)
CONTRADICTING = ONES.clone()
CONTRADICTING[1, 3] = 0

# Two streams of 40 tokens lie in the cache; what each wrong call's message must name.
WRONG_CALLS = {
    "more rows": (call_with(input_ids=random_ids(3, 1)), ["batch", 3, 2]),
    "fewer rows": (call_with(input_ids=random_ids(1, 1)), ["batch", 1, 2]),
    "mask too short": (call_with(input_ids=FIVE, attention_mask=ONES[:, :4]), ["attention_mask", 4, 5, 45]),
    "mask between": (call_with(input_ids=FIVE, attention_mask=ONES[:, :20]), ["attention_mask", 20, 5, 45]),
    "mask too long": (call_with(input_ids=ONE, attention_mask=ONES[:, :43]), ["attention_mask", 43, 1, 41]),
    "mask of one row": (call_with(input_ids=FIVE, attention_mask=ONES[:1, :5]), ["attention_mask"]),
    "mask of four dimensions": (
        call_with(input_ids=FIVE, attention_mask=torch.zeros(2, 1, 5, 45)),
        ["attention_mask", "(2, 1, 5, 45)"],
    ),
    "mask of one dimension": (call_with(input_ids=FIVE, attention_mask=ONES[0, :5]), ["attention_mask"]),
    "past that contradicts": (call_with(input_ids=FIVE, attention_mask=CONTRADICTING), ["attention_mask"]),
    "positions from elsewhere": (
        call_with(input_ids=FIVE, position_ids=torch.arange(100, 105)[None]),
        ["position_ids"],
    ),
    "packed sequences": (
        call_with(input_ids=FIVE, position_ids=torch.tensor([[0, 1, 0, 1, 2]] * 2)),
        ["position_ids"],
    ),
    "positions that stand still": (
        call_with(input_ids=FIVE, position_ids=torch.zeros(2, 5, dtype=torch.long)),
        ["position_ids"],
    ),
}


@pytest.fixture
def filled(model):
    ids = random_ids(2, 40)
    _, cache = stream(model, ids)
    return model, cache, ids


@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_wrong_calls_leave_the_cache_alone(filled, wrong):
    model, cache, ids = filled
    call, words = WRONG_CALLS[wrong]
    before, seen = state_of(cache), cache.tokens_seen.tolist()
    refused(BAD, lambda: call(model, cache), *words)
    assert cache.tokens_seen.tolist() == seen and cache.get_seq_length() == 40
    assert_same_state(cache, before)
    rest = random_ids(2, 20, seed=4)
    logits, _ = stream(model, rest, [1, 19], cache)
    for r in range(2):
        assert_close(logits[r], naive_logits(tiny_llama(), torch.cat([ids[r], rest[r]]), S, W)[40:])


def test_packed_sequences_without_a_cache(model):
    ids = random_ids(1, 6)
    packed = torch.tensor([[0, 1, 2, 0, 1, 2]])
    refused(BAD, lambda: model(ids, position_ids=packed, use_cache=False), "position_ids")
    refused(BAD, lambda: model(ids, position_ids=packed), "position_ids")


@pytest.mark.parametrize("shape", [(2, 5), (2, 7), (3, 6), (2, 1, 6, 6)], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}], ids=str)
def test_wrong_masks_without_a_past(model, options, shape):
    refused(BAD, lambda: model(random_ids(2, 6), attention_mask=torch.ones(shape), **options), "attention_mask")


def test_positions_that_say_nothing_new_are_accepted(model):
    """What generate or a careful caller passes: the columns' or the real tokens' own numbers."""
    ids = random_ids(1, 30)
    expected = naive_logits(tiny_llama(), ids[0], S, W)
    with torch.no_grad():
        outputs = model(ids[:, :20], position_ids=torch.arange(20)[None])
        assert_close(outputs.logits[0], expected[:20])
        outputs = model(ids[:, 20:], position_ids=torch.arange(20, 30)[None], past_key_values=outputs.past_key_values)
    assert_close(outputs.logits[0], expected[20:])


def test_attentions_of_a_call_longer_than_the_cache_are_refused():
    model = inject_attention_sinks(tiny_llama(attn_implementation="eager"), S, W)
    _, cache = stream(model, random_ids(1, 40))
    before = state_of(cache)
    long = random_ids(1, S + W + 2)
    refused(
        BAD,
        lambda: model(long, past_key_values=cache, output_attentions=True),
        "output_attentions",
        S + W + 2,
        S + W + 1,
    )
    assert_same_state(cache, before)
    refused(BAD, lambda: model(long, output_attentions=True), "output_attentions")


def test_more_ids_than_the_cache_has_columns_are_ambiguous_without_a_mask(filled):
    """The whole text again, or a long new part? generate() makes up a mask of the ids' length and cannot know."""
    model, cache, ids = filled
    before = state_of(cache)
    longer = torch.cat([ids, random_ids(2, 7, seed=5)], dim=1)
    generate = {"past_key_values": cache, "max_new_tokens": 5, "do_sample": False}
    refused(BAD, lambda: model.generate(longer, **generate), "attention_mask", 47, 40)
    assert_same_state(cache, before)
    sequences = model.generate(longer, attention_mask=torch.ones_like(longer), **generate)
    for sequence in sequences:
        assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, 47)


def test_an_error_inside_the_model_leaves_the_cache_alone(filled):
    """Not only our own checks: an id beyond the vocabulary fails in the embedding."""
    model, cache, _ = filled
    before = state_of(cache)
    with pytest.raises(IndexError):
        model(torch.full((2, 3), 10**6), past_key_values=cache)
    assert_same_state(cache, before)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("length", [1, 5, 40, 5_000])
def test_an_error_in_the_middle_of_the_layers_leaves_the_stream_alone(filled, layer, length):
    """An interruption half-way: the next call continues as if the failed one had never been."""
    model, cache, ids = filled
    rest, columns = random_ids(2, 40, seed=4), []

    def interrupt(module, args, output):
        columns.append(output.shape[1])
        if sum(columns) > length // 2:  # a long call is cut into pieces: let the first ones pass
            raise KeyboardInterrupt

    hook = model.model.layers[layer].self_attn.o_proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream(model, random_ids(2, length, seed=6), cache=cache)
    hook.remove()
    assert cache.get_seq_length() == 40 and cache.tokens_seen.tolist() == [40, 40]
    logits, _ = stream(model, rest, [1, 39], cache)
    for r in range(2):
        assert_close(logits[r], naive_logits(tiny_llama(), torch.cat([ids[r], rest[r]]), S, W)[40:])


def test_randomised_models_are_what_these_tests_stand_on():
    """The helper really moves norms and biases away from 1 and 0."""
    model = randomise(LlamaForCausalLM(tiny_config(attention_bias=True)))
    assert model.model.norm.weight.std() > 0.1 and model.model.layers[0].self_attn.q_proj.bias.std() > 0.1
