"""Compiled steps attend to rounded keys and values as they are kept: as SDPA attends to them unpacked, and in place."""

from unittest import mock

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attention_sinks import inject_attention_sinks
from attention_sinks.cache.precision import FORMS
from attention_sinks.plan.layer import Rounded
from attention_sinks.streaming import rounded_attention
from attention_sinks.streaming.rounded_attention import attend_rounded, is_built
from support.helpers import assert_close, largest_allocation, random_ids, stream, tiny_llama

pytestmark = pytest.mark.skipif(not is_built(), reason="no C++ compiler that builds the operator")

SHAPES = {
    "one tile": (1, 3, 3, 64, 64, 20, 4),
    "many parts": (2, 2, 1, 32, 32, 1025, 4),
    "no sinks": (1, 1, 4, 128, 128, 70, 0),
    "sinks beyond a tile": (2, 2, 2, 64, 64, 200, 70),
    "groups of 16": (1, 2, 3, 80, 80, 300, 4),
    "groups of 8": (3, 1, 2, 8, 8, 65, 1),
    "values of another width": (1, 2, 2, 96, 40, 130, 4),
}
"""Rows, key-value heads, queries of each, widths of keys and values, slots, sinks."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def kept(cache_dtype, shape, factor=1.0):
    """Queries, and keys and values as a cache keeps them, whose unpacked ones are right throughout."""
    rows, heads, queries, width, value_width, slots, sinks = SHAPES[shape]
    generator = torch.Generator().manual_seed(slots)

    def states(size, width):
        return torch.randn(rows, heads, size, width, generator=generator) * factor

    query, key, value = states(queries, width), states(slots, width), states(slots, value_width)
    (key_form, value_form), shown = FORMS[cache_dtype], states(sinks, width)
    buffers = key_form.encode(key), value_form.encode(value)
    unpacked = (
        torch.cat((shown, key_form.decode(buffers[0], key)[:, :, sinks:]), 2),
        value_form.decode(buffers[1], value),
    )
    return query.reshape(rows, -1, 1, width), Rounded(*buffers, shown, unpacked)


def visible_in(rounded, rows):
    """Gaps of all sizes, for each row others, and in the first one whole tiles."""
    slots = rounded.keys.shape[2]
    visible = torch.rand(rows, slots, generator=torch.Generator().manual_seed(1)) < 0.7
    visible[:, -1] = True
    visible[0, : slots - 3] &= torch.arange(slots - 3) // 64 % 2 == 0
    return visible[:, None, None]


def by_sdpa(query, rounded, visible, scaling):
    heads = rounded.keys.shape[1]
    grouped = query.reshape(query.shape[0], heads, -1, query.shape[-1])
    output = scaled_dot_product_attention(grouped, *rounded.unpacked, attn_mask=visible, scale=scaling)
    return output.reshape(query.shape[0], 1, query.shape[1], -1)


@pytest.mark.parametrize("cache_dtype", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_attention(cache_dtype, shape):
    query, rounded = kept(cache_dtype, shape)
    for rows in {1, query.shape[0]}:  # one mask for all rows, or one for each
        visible = visible_in(rounded, rows)
        attended = attend_rounded(query, rounded, visible, 0.3)
        torch.testing.assert_close(attended, by_sdpa(query, rounded, visible, 0.3), atol=2e-6, rtol=2e-6)


def test_scores_of_any_size():
    """A softmax that had to sum what is beyond the range of floats would be infinite or nothing."""
    query, rounded = kept("int8", "many parts", factor=30.0)
    visible = visible_in(rounded, 1)
    attended = attend_rounded(query, rounded, visible, 1.0)
    torch.testing.assert_close(attended, by_sdpa(query, rounded, visible, 1.0), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("cache_dtype", FORMS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("of", ["keys", "values"])
def test_what_is_not_finite_shows(cache_dtype, number, of):
    query, rounded = kept(cache_dtype, "many parts")
    form, which = FORMS[cache_dtype][of == "values"], ["keys", "values"].index(of)
    unpacked = list(rounded.unpacked)
    unpacked[which][1, 1, 700, 3] = number
    buffers = [rounded.keys, rounded.values]
    buffers[which] = form.encode(unpacked[which])
    unpacked[which] = form.decode(buffers[which], unpacked[which])
    rounded = Rounded(*buffers, unpacked[0][:, :, :4], tuple(unpacked))
    visible = torch.ones(1, 1, 1, rounded.keys.shape[2], dtype=torch.bool)
    attended = attend_rounded(query, rounded, visible, 0.3)
    expected = by_sdpa(query, rounded, visible, 0.3)
    torch.testing.assert_close(attended, expected, atol=2e-6, rtol=2e-6, equal_nan=True)
    assert not attended.isfinite().all() or (of == "keys" and expected.isfinite().all())


def test_any_number_of_threads():
    query, rounded = kept("int8", "many parts")
    visible, threads = visible_in(rounded, 2), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = attend_rounded(query, rounded, visible, 0.3)
        torch.set_num_threads(3)
        assert torch.equal(attend_rounded(query, rounded, visible, 0.3), alone)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def steps(model, ids, backend="eager"):
    """Logits of `ids` after three tokens in one call, step by step in a graph, and the code of that graph."""
    code = []

    def seen(graph, inputs):
        code.append(graph.code)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    _, cache = stream(model, ids[:, :3])
    forward = torch.compile(model.forward, backend=seen, fullgraph=True)
    logits = [forward(input_ids=token, cache=cache).logits for token in ids[:, 3:].split(1, dim=1)]
    (code,) = code
    return torch.cat(logits, dim=1), code.count("attend_rounded")


@pytest.mark.parametrize("cache_dtype", FORMS)
def test_steps_in_a_graph_attend_so(cache_dtype):
    """The window goes by many times; the steps are those of a graph that unpacks.

    With one layer, no number that is rounded follows from attention: else the last bit of a sum would decide of one
    between two others which of them it becomes.
    """
    plain, ids = tiny_llama(num_hidden_layers=1), random_ids(2, 60)
    model = inject_attention_sinks(plain, 4, 12, attention_sink_cache_dtype=cache_dtype)
    logits, calls = steps(model, ids)
    assert calls == 1
    with mock.patch.object(rounded_attention, "is_built", lambda: False):
        unpacked, calls = steps(model, ids)
    assert calls == 0
    assert_close(logits, unpacked)


def test_every_layer_attends_so():
    model = inject_attention_sinks(tiny_llama(), 4, 12, attention_sink_cache_dtype="int8")
    assert steps(model, random_ids(1, 8))[1] == model.config.num_hidden_layers > 1


@pytest.mark.parametrize("why", ["float64", "eager", "not rounded"])
def test_other_steps_attend_as_always(why):
    model = tiny_llama().double() if why == "float64" else tiny_llama()
    if why == "eager":
        model.set_attn_implementation("eager")
    model = inject_attention_sinks(model, 4, 12, attention_sink_cache_dtype=None if why == "not rounded" else "int8")
    assert steps(model, random_ids(1, 8))[1] == 0


def test_where_it_cannot_be_built_steps_unpack(monkeypatch):
    broken = mock.Mock(read_text=lambda encoding: "this is no C++")
    monkeypatch.setattr(rounded_attention, "SOURCE", broken)
    rounded_attention._built.cache_clear()
    try:
        model = inject_attention_sinks(tiny_llama(), 4, 12, attention_sink_cache_dtype="int8")
        assert steps(model, random_ids(1, 8))[1] == 0
    finally:
        rounded_attention._built.cache_clear()


def test_no_buffer_is_copied_or_unpacked(tmp_path):
    model = inject_attention_sinks(tiny_llama(), 4, 4000, attention_sink_cache_dtype="int8")
    _, cache = stream(model, random_ids(1, 3))
    forward, token = torch.compile(model.forward, fullgraph=True), random_ids(1, 1)
    with torch.no_grad():
        forward(input_ids=token, cache=cache)
        largest = largest_allocation(lambda: forward(input_ids=token, cache=cache), tmp_path)
    assert 0 < largest < cache.layers[0].keys.nbytes / 2
