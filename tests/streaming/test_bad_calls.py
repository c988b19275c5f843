"""Wrong caches and wrong calls: the message names the argument, the value and the cure; the cache is as it was."""

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from references.naive import naive_logits
from support.helpers import (
    BAD,
    S,
    W,
    assert_close,
    assert_same_state,
    assert_tokens_follow,
    interrupted_in,
    random_ids,
    randomise,
    refused,
    state_of,
    stream,
    tiny_config,
    tiny_llama,
)

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
        refused(BAD, lambda: model(ids, cache=cache), "cache", type(cache).__name__)
    else:
        columns = 0 if isinstance(cache, tuple) else cache.get_seq_length()
        ids = random_ids(1, int(columns) + 5)
        refused(BAD, lambda: model.generate(ids, cache=cache, max_new_tokens=5), "cache")


def test_a_used_cache_of_another_model(model):
    other = inject_attention_sinks(tiny_llama(seed=1), S, W)
    cache = used(AttentionSinkKVCache(other), other)
    before = state_of(cache)
    refused(BAD, lambda: model(random_ids(1, 1), cache=cache), "cache", "AttentionSinkKVCache")
    assert_same_state(cache, before)


def test_a_cache_of_another_prefill_mode(model):
    cache = used(AttentionSinkKVCache(model), model)
    before = state_of(cache)
    inject_attention_sinks(model, S, W, "dense")
    refused(BAD, lambda: model(random_ids(1, 1), cache=cache), "cache", "streaming", "dense")
    assert_same_state(cache, before)


# --- calls ------------------------------------------------------------------------------------------------------------


def call_with(**options):
    return lambda model, cache: model(**options, cache=cache)


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
        outputs = model(ids[:, 20:], position_ids=torch.arange(20, 30)[None], cache=outputs.cache)
    assert_close(outputs.logits[0], expected[20:])


def test_attentions_of_a_call_longer_than_the_cache_are_refused():
    model = inject_attention_sinks(tiny_llama(attn_implementation="eager"), S, W)
    _, cache = stream(model, random_ids(1, 40))
    before = state_of(cache)
    long = random_ids(1, S + W + 2)
    refused(
        BAD,
        lambda: model(long, cache=cache, output_attentions=True),
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
    generate = {"cache": cache, "max_new_tokens": 5, "do_sample": False}
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
        model(torch.full((2, 3), 10**6), cache=cache)
    assert_same_state(cache, before)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("length", [1, 5, 40, 5_000])
def test_an_error_in_the_middle_of_the_layers_leaves_the_stream_alone(filled, layer, length):
    """An interruption half-way: the next call continues as if the failed one had never been."""
    model, cache, ids = filled
    rest = random_ids(2, 40, seed=4)
    with interrupted_in(model, layer, after=length // 2):  # a long call is cut into chunks: the first ones pass
        stream(model, random_ids(2, length, seed=6), cache=cache)
    assert cache.get_seq_length() == 40 and cache.tokens_seen.tolist() == [40, 40]
    logits, _ = stream(model, rest, [1, 39], cache)
    for r in range(2):
        assert_close(logits[r], naive_logits(tiny_llama(), torch.cat([ids[r], rest[r]]), S, W)[40:])


def test_randomised_models_are_what_these_tests_stand_on():
    """The helper really moves norms and biases away from 1 and 0."""
    model = randomise(LlamaForCausalLM(tiny_config(attention_bias=True)))
    assert model.model.norm.weight.std() > 0.1 and model.model.layers[0].self_attn.q_proj.bias.std() > 0.1
