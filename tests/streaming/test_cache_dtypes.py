"""A cache that rounds keys and values when they enter: the contract, with a reference that rounds likewise.

The models are in float64. In float32, two ways to compute a number differ by 1e-7 now and then where it lies halfway
between two points of the grid, and a whole step of the grid follows.
"""

import copy
from functools import partial

import pytest
import torch

from attention_sinks import AttentionSinkKVCache, attention_sinks_injected, inject_attention_sinks
from references.naive import naive_logits, naive_stream
from references.rounding import ROUNDINGS, straight_through
from support.contract import CHECKS, Subject, short_streams_are_plain_transformers
from support.helpers import (
    TEETH,
    S,
    W,
    assert_close,
    assert_same_state,
    largest_difference,
    random_ids,
    refused,
    state_of,
    stream,
    tiny_llama,
)
from support.zoo import animal_of

LENGTH = 6 * (S + W + 1)
DTYPES = list(ROUNDINGS)
WHOLE_NUMBERS = ["int8", "int8-int4"]
NAMED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def wide_llama(**config):
    return tiny_llama(**config).double()


def rounding(cache_dtype, sinks=S, window=W, **config):
    reference = partial(naive_logits, rounding=ROUNDINGS[cache_dtype])
    return Subject(partial(wide_llama, **config), reference, sinks, window, cache_dtype)


def streaming(cache_dtype, **config):
    return inject_attention_sinks(wide_llama(**config), S, W, attention_sink_cache_dtype=cache_dtype)


SUBJECTS = {
    "gqa": {},
    "yarn": {"rope": "yarn"},
    "groups_of_8": {"head_dim": 24},
    "windowed": {"sinks": 0, "window": 16},
    "many_sinks": {"sinks": 9, "window": 3},
}


KINDS = [(name, "gqa") for name in DTYPES] + [("int8-int4", name) for name in SUBJECTS if name != "gqa"]


@pytest.mark.parametrize("check", [each for each in CHECKS if each is not short_streams_are_plain_transformers])
@pytest.mark.parametrize(("cache_dtype", "subject"), KINDS)
@pytest.mark.each_release
def test_contract(cache_dtype, subject, check):
    check(rounding(cache_dtype, **SUBJECTS[subject]))


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_rounding_shows(cache_dtype):
    """The contract's tests would fail if the cache did not round, or rounded otherwise."""
    ids = random_ids(LENGTH)
    logits = {name: naive_logits(wide_llama(), ids, S, W, rounding=ROUNDINGS[name]) for name in DTYPES}
    logits["auto"] = naive_logits(wide_llama(), ids, S, W)
    others = [name for name in logits if name != cache_dtype]
    assert min(largest_difference(logits[name], logits[cache_dtype]) for name in others) > 2e-3


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_all_arguments_take_it(cache_dtype):
    model = streaming(cache_dtype)
    assert AttentionSinkKVCache(model).settings.cache_dtype == cache_dtype
    assert AttentionSinkKVCache(model, attention_sink_cache_dtype="auto").settings.cache_dtype == "auto"
    with attention_sinks_injected(model, S, W):
        assert AttentionSinkKVCache(model).settings.cache_dtype == "auto"
        given = NAMED.get(cache_dtype, cache_dtype)
        cache = AttentionSinkKVCache(model, attention_sink_cache_dtype=given)
        logits, _ = stream(model, random_ids(1, LENGTH), [30, 1, LENGTH - 31], cache)
    assert f"attention_sink_cache_dtype={cache_dtype!r}" in repr(cache)
    assert cache.dtype == NAMED.get(cache_dtype, torch.uint8)
    expected = naive_logits(wide_llama(), random_ids(1, LENGTH)[0], S, W, rounding=ROUNDINGS[cache_dtype])
    assert_close(logits[0], expected)


@pytest.mark.parametrize("wrong", ["int4", "float8", "INT8", 8, torch.int32, torch.float64, True])
def test_unknown_dtypes(wrong):
    model = inject_attention_sinks(tiny_llama(), S, W)
    for make in (inject_attention_sinks, AttentionSinkKVCache):
        refused(ValueError, partial(make, model, attention_sink_cache_dtype=wrong), f"cache_dtype={wrong!r}")
    assert AttentionSinkKVCache(model).settings.cache_dtype == "auto"


@pytest.mark.parametrize("cache_dtype", WHOLE_NUMBERS)
def test_heads_without_groups(cache_dtype):
    model = inject_attention_sinks(tiny_llama(head_dim=20), S, W, attention_sink_cache_dtype=cache_dtype)
    cache = AttentionSinkKVCache(model)
    refused(ValueError, lambda: model(random_ids(1, 30), cache=cache), "heads of 20 numbers")
    assert not cache.is_initialized and cache.nbytes == 0


def test_latent_attention_has_no_values_for_4_bits():
    model = animal_of("deepseek_v3").build()
    inject = partial(inject_attention_sinks, model, S, W, attention_sink_cache_dtype="int8-int4")
    refused(NotImplementedError, inject, "attention_sink_cache_dtype='int8-int4'")
    assert not hasattr(type(model), "_plain_class")


# ---- bytes


@pytest.mark.parametrize(
    ("cache_dtype", "bits"), [("auto", 32), ("bfloat16", 16), ("float16", 16), ("int8", 9), ("int8-int4", 7)]
)
def test_bytes(cache_dtype, bits):
    """rows x heads x [(S+W+1)(d_k+d_v) numbers of so many bits on average, and S d_k in the model's dtype]."""
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3}
    model = inject_attention_sinks(tiny_llama(**sizes), 4, 1020, attention_sink_cache_dtype=cache_dtype)
    _, cache = stream(model, random_ids(2, 5))
    numbers = 1025 * (64 + 64) * bits // 8 + 4 * 64 * 4
    counters = 2 * (2 * 8 + 1025) + 8
    assert cache.nbytes == 2 * 2 * 3 * numbers + counters


# ---- what a number becomes


@pytest.mark.parametrize("cache_dtype", WHOLE_NUMBERS)
def test_what_is_not_finite_stays_in_its_group(cache_dtype):
    """A NaN shows as one, as without rounding, and spoils neither other heads nor other tokens."""
    model = streaming(cache_dtype, head_dim=64)
    _, cache = stream(model, random_ids(1, 8))
    layer = cache.layers[0]
    states = torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        bad = states.clone()
        bad[0, 1, 0, 40] = wrong
        for form in layer.precision:
            good, found = (form.decode(form.encode(each), each) for each in (states, bad))
            assert found[0, 1, 0, 32:].isnan().all()
            found[0, 1, 0, 32:] = good[0, 1, 0, 32:]
            assert torch.equal(found, good)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_forms_equal_the_reference(cache_dtype, dtype):
    layer = AttentionSinkKVCache(streaming(cache_dtype)).layers[0]
    scales = torch.tensor([1e-4, 1.0, 30.0, 0.0], dtype=torch.float64)[:, None]
    states = torch.randn(3, 5, 4, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states = (states * scales + scales).to(dtype)
    for form, rounded in zip(layer.precision, ROUNDINGS[cache_dtype], strict=True):
        found, expected = form.decode(form.encode(states), states), rounded(states.double())
        assert found.dtype == dtype
        # bfloat16 and float16 round what comes out once more, and both forms may lie on two sides of a halfway point
        torch.testing.assert_close(found.double(), expected.to(dtype).double(), rtol=2e-2, atol=1e-12)
        if dtype == torch.float64:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---- what a stream goes through


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_saved_cropped_and_moved_streams_go_on(cache_dtype, implementation, tmp_path):
    model, ids = streaming(cache_dtype, attn_implementation=implementation), random_ids(2, LENGTH)
    expected = [naive_logits(wide_llama(), row, S, W, rounding=ROUNDINGS[cache_dtype]) for row in ids]
    _, cache = stream(model, ids[:, :50], [20, 1, 29])
    cache.save(tmp_path / "cache")
    loaded = AttentionSinkKVCache.load(tmp_path / "cache", model)
    assert_same_state(loaded, state_of(cache))
    assert loaded.settings == cache.settings
    right = stream(model, ids[:, 50:70], [1, 19], copy.deepcopy(cache))[0]
    assert torch.equal(stream(model, ids[:, 50:70], [1, 19], loaded)[0], right)
    loaded.activate_past_recording()
    stream(model, random_ids(2, 30, seed=9), [1, 1, 28], loaded)
    loaded.crop(-30)
    batch = AttentionSinkKVCache.stack([loaded.take(1), loaded.take(0)])
    logits, _ = stream(model, ids[[1, 0], 70:], [1, 31], batch)
    for row, right in zip(logits, reversed(expected), strict=True):
        assert_close(row, right[70:])


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_files_and_rows_of_another_dtype(cache_dtype, tmp_path):
    model = streaming(cache_dtype)
    _, cache = stream(model, random_ids(1, 30))
    other = AttentionSinkKVCache(model, attention_sink_cache_dtype="auto")
    stream(model, random_ids(1, 30), cache=other)
    refused(ValueError, lambda: AttentionSinkKVCache.stack([other, cache]), f"cache_dtype={cache_dtype!r}")
    tensors, state = cache.snapshot()
    for name in {"auto", "bfloat16", "float16", "int8", "int8-int4"} - {cache_dtype}:
        load = partial(AttentionSinkKVCache.from_snapshot, model, tensors, {**state, "cache_dtype": name})
        refused(ValueError, load, "holds")


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_gradients_pass_the_rounding(cache_dtype):
    ids, window = random_ids(40), 60
    plain, model = wide_llama(), inject_attention_sinks(wide_llama(), 4, window, attention_sink_cache_dtype=cache_dtype)
    roundings = tuple(map(straight_through, ROUNDINGS[cache_dtype]))
    naive_stream(plain, ids, 4, window, rounding=roundings).logits.square().sum().backward()
    model(ids[None], use_cache=True).logits.square().sum().backward()
    for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert largest_difference(found.grad, expected.grad) < 1e-9 * expected.grad.abs().max(), name


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_weights_of_attention(cache_dtype):
    model = streaming(cache_dtype, attn_implementation="eager")
    _, cache = stream(model, random_ids(1, 40))
    with torch.no_grad():
        step = model(random_ids(1, 1, seed=3), cache=cache, output_attentions=True).attentions
        call = model(random_ids(1, 5, seed=4), cache=cache, output_attentions=True).attentions
    for weights in (*step, *call):
        assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_positions_far_from_the_beginning(cache_dtype):
    """Origins never move, so that no key is rotated and rounded twice; angles of large positions stay exact."""
    model, far = streaming(cache_dtype), 10**7
    ids = random_ids(1, LENGTH)
    _, cache = stream(model, ids)
    near = copy.deepcopy(cache)
    counters, history = cache.streams.now()
    assert counters.origin == (0,)
    moved = far - far % (W + 1)
    shifted = type(counters)(tuple(t + moved for t in counters.seen), counters.origin)
    position = next(each for each in cache.table().positions if each is not None)
    for layer in cache.layers:
        form, like = layer.part_form, layer.sink_slots
        ring = form.decode(layer.keys[:, :, S:], like)
        turned = position.pairing.rotate(ring, position.tables(torch.tensor([[moved]]), torch.float64))
        layer.keys[:, :, S:] = form.encode(turned)
    cache.streams.change((shifted, history), None)
    new = random_ids(1, 8, seed=5)
    found, expected = stream(model, new, [1, 7], cache)[0], stream(model, new, [1, 7], near)[0]
    limit = {"int8-int4": 0.5, "int8": 0.1}.get(cache_dtype, 0.05)  # these keys have been rounded twice
    assert TEETH / 100 < largest_difference(found, expected) < limit


@pytest.mark.parametrize("first", [True, False], ids=["on, then off", "off, then on"])
@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_autocast_comes_and_goes(cache_dtype, first):
    model = inject_attention_sinks(tiny_llama(), S, W, attention_sink_cache_dtype=cache_dtype)
    ids, cache, logits = random_ids(1, 60), AttentionSinkKVCache(model), []
    for enabled, part in zip((first, not first, first), ids.split([20, 20, 20], dim=1), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits.append(stream(model, part, [10] + [1] * 10, cache)[0].float())
    expected = naive_logits(tiny_llama(), ids[0], S, W, rounding=ROUNDINGS[cache_dtype])
    assert (torch.cat(logits, dim=1)[0] - expected).abs().mean() < 0.2


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_generate_goes_on(cache_dtype):
    model, prompt = streaming(cache_dtype), random_ids(1, 30)
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
    generated = model.generate(prompt, max_new_tokens=40, **options)
    expected = naive_logits(wide_llama(), generated[0], S, W, rounding=ROUNDINGS[cache_dtype])
    assert torch.equal(generated[0, 30:], expected[29:-1].argmax(-1))
