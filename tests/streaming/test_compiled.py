"""Single-token steps under torch.compile: one graph for the whole life of a stream, and the streams are the same."""

import copy
from functools import partial
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, remove_attention_sinks
from attention_sinks.architecture.setup import setup_of
from references.naive import naive_logits
from references.rounding import ROUNDINGS
from support.contract import pattern
from support.helpers import (
    assert_close,
    assert_same_state,
    largest_allocation,
    plain_logits,
    random_ids,
    state_of,
    storages_of,
    stream,
    streaming_llama,
    tiny_llama,
)
from support.pages import COMPILING, run_block
from support.zoo import MODELS

CLOSE = 1e-4
"""Between a compiled step and an eager one."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model, backend="eager", **options):
    """The model's forward as one graph; the default backend traces, and runs what it traced without compiling it."""
    return torch.compile(model.forward, backend=backend, fullgraph=True, **options)


def graphs():
    return counters["stats"]["unique_graphs"]


@torch.no_grad()
def feed(forward, ids, cache, mask=None):
    """Logits of `ids` [rows, columns] fed one by one; `mask` [rows, columns]."""
    steps = [
        forward(
            input_ids=ids[:, column : column + 1],
            attention_mask=None if mask is None else mask[:, column : column + 1],
            cache=cache,
        ).logits
        for column in range(ids.shape[1])
    ]
    return torch.cat(steps, dim=1)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_one_graph_from_the_first_step_to_many_windows_later(backend):
    plain, model, ids = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12), random_ids(300)
    expected = naive_logits(plain, ids, 4, 12)
    logits, cache = stream(model, ids[None, :3])
    assert_close(feed(compiled(model, backend), ids[None, 3:], cache)[0], expected[3:])
    assert graphs() == 1


def test_no_buffer_is_copied(tmp_path):
    """A step that copied keys and values would take twice its time, and nothing else would show it."""
    model = inject_attention_sinks(tiny_llama(), 4, 4000)
    _, cache = stream(model, random_ids(1, 3))
    forward, token = compiled(model, "inductor"), random_ids(1, 1)
    feed(forward, token, cache)
    assert 0 < largest_allocation(lambda: feed(forward, token, cache), tmp_path) < cache.layers[0].keys.nbytes / 2


@pytest.mark.parametrize(
    ("cache_dtype", "backend"), [("bfloat16", "eager"), ("int8", "inductor"), ("int8-int4", "inductor")]
)
def test_rounded_caches(cache_dtype, backend):
    """From the second sink on, in float64, where two ways to compute a number round alike."""
    model = inject_attention_sinks(tiny_llama().double(), 4, 12, attention_sink_cache_dtype=cache_dtype)
    ids = random_ids(2, 90)
    expected = [naive_logits(tiny_llama().double(), row, 4, 12, rounding=ROUNDINGS[cache_dtype]) for row in ids]
    _, cache = stream(model, ids[:, :2])
    places = storages_of(cache)
    logits = feed(compiled(model, backend), ids[:, 2:], cache)
    for row, right in zip(logits, expected, strict=True):
        assert_close(row, right[2:])
    assert graphs() == 1 and storages_of(cache) == places
    assert_close(stream(model, ids[:, :7], [1, 6], cache)[0], stream(model, ids[:, :7], [7], eager_twin(model, ids))[0])


def eager_twin(model, ids):
    """Return a cache that has read `ids` without a graph."""
    return stream(model, ids)[1]


@pytest.mark.parametrize("rope", ["dynamic", "longrope", "yarn", "llama3"])
def test_every_kind_of_frequencies(rope):
    plain, model, ids = tiny_llama(rope=rope), inject_attention_sinks(tiny_llama(rope=rope), 4, 12), random_ids(120)
    _, cache = stream(model, ids[None, :20])
    assert_close(feed(compiled(model), ids[None, 20:], cache)[0], naive_logits(plain, ids, 4, 12)[20:])
    assert graphs() == 1


@pytest.mark.parametrize("animal", MODELS)
def test_every_architecture_steps_in_one_graph(animal):
    model, ids = inject_attention_sinks(animal.build(animal.implementations[0]), 4, 12), random_ids(60)[None]
    _, cache = stream(model, ids[:, :5])
    if not cache.is_compileable:
        assert setup_of(model).has_states
        pytest.skip(f"{animal}: its layers keep states that are not per token; its steps are not compiled")
    expected = feed(model, ids[:, 5:], copy.deepcopy(cache))
    try:
        logits = feed(compiled(model), ids[:, 5:], cache)
    except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError):
        if model._can_compile_fullgraph:
            raise
        pytest.skip(f"{animal}: Transformers itself does not compile {type(model).__name__} as one graph")
    assert_close(logits, expected, CLOSE)
    assert graphs() == 1


def test_flex_attention_steps_in_a_graph_as_eager_attention_does():
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(60)[None]
    _, cache = stream(model, ids[:, :5])
    expected = feed(model, ids[:, 5:], copy.deepcopy(cache))
    model.set_attn_implementation("flex_attention")
    assert_close(feed(compiled(model), ids[:, 5:], cache), expected, CLOSE)
    assert graphs() == 1


def test_rows_of_a_padded_batch():
    """Rows of different length, one of which pauses and goes on."""
    plain, model = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12)
    rows = [random_ids(90, seed=1), random_ids(70, seed=2), random_ids(52, seed=3)]
    start = pattern("." * 20 + "x" * 20, "x" * 40, "." * 37 + "xxx").long()
    pauses = pattern("x" * 70, "x" * 10 + "." * 20 + "x" * 20 + "." * 20, ".x" * 20 + "x" * 29 + ".").long()
    mask = torch.cat([start, pauses], dim=1)
    ids = torch.zeros(3, 110, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, mask[row].bool()] = tokens
    cache = AttentionSinkKVCache(model)
    with torch.no_grad():
        model(ids[:, :40], attention_mask=start, cache=cache)
    logits = feed(compiled(model), ids[:, 40:], cache, pauses)
    for row, tokens in enumerate(rows):
        fed = int(start[row].sum())
        assert_close(logits[row, pauses[row].bool()], naive_logits(plain, tokens, 4, 12)[fed:])
    assert graphs() == 1
    assert cache.tokens_seen.tolist() == [90, 70, 52]


def test_a_mask_of_all_columns_says_what_its_last_column_says():
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(2, 30)
    _, cache = stream(model, ids[:, :20])
    fork, forward = copy.deepcopy(cache), torch.compile(model.forward, backend="eager", fullgraph=True, dynamic=True)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, -1] = 0
    with torch.no_grad():
        whole = forward(ids[:, 20:21], attention_mask=mask, cache=cache).logits
        last = forward(ids[:, 20:21], attention_mask=mask[:, -1:], cache=fork).logits
    assert_close(whole[0], last[0])
    assert cache.tokens_seen.tolist() == fork.tokens_seen.tolist() == [21, 20]


def test_compiled_and_eager_steps_and_calls_in_any_order():
    plain, model, ids = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12), random_ids(260)
    forward, expected = compiled(model), naive_logits(plain, ids, 4, 12)
    logits, cache = stream(model, ids[None, :30])
    done = 30
    for step, columns in ((forward, 40), (model, 7), (forward, 25), (None, 33), (forward, 50), (None, 1), (model, 74)):
        new = ids[None, done : done + columns]
        part = stream(model, new, cache=cache)[0] if step is None else feed(step, new, cache)
        logits, done = torch.cat([logits, part], dim=1), done + columns
    assert_close(logits[0], expected)
    assert cache.get_seq_length() == done == 260
    assert graphs() == 1


@pytest.mark.parametrize("fed", [5, 40])
def test_what_compiled_steps_fed_can_be_taken_back(fed):
    """As after eager steps: any number of columns while the row is short, then one."""
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(80)[None]
    _, cache = stream(model, ids[:, :6])
    eager = copy.deepcopy(cache)
    feed(compiled(model), ids[:, 6 : 6 + fed], cache)
    feed(model, ids[:, 6 : 6 + fed], eager)
    assert cache.streams.returnable == eager.streams.returnable == (11 if fed == 5 else 1)
    cache.crop(-1)
    eager.crop(-1)
    assert_close(feed(model, ids[:, 60:], cache), feed(model, ids[:, 60:], eager), CLOSE)


def test_saving_after_compiled_steps(tmp_path):
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(90)[None]
    _, cache = stream(model, ids[:, :6])
    forward = compiled(model)
    feed(forward, ids[:, 6:50], cache)
    cache.save(tmp_path / "cache.safetensors")
    loaded = AttentionSinkKVCache.load(tmp_path / "cache.safetensors", model)
    assert torch.equal(feed(forward, ids[:, 50:], loaded), feed(forward, ids[:, 50:], cache))
    assert graphs() == 1


def test_caches_share_a_graph_and_nothing_else():
    plain, model = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12)
    forward, ids = compiled(model), [random_ids(100, seed=seed) for seed in range(3)]
    caches = [stream(model, row[None, : 5 + 9 * number])[1] for number, row in enumerate(ids)]
    with torch.no_grad():
        for column in range(60):
            for number, (row, cache) in enumerate(zip(ids, caches, strict=True)):
                at = 5 + 9 * number + column
                logits = forward(row[None, at : at + 1], cache=cache).logits[0, 0]
                assert_close(logits, naive_logits(plain, row[: at + 1], 4, 12)[-1]) if column % 20 == 19 else None
    assert graphs() == 1


def test_rows_come_and_go_between_compiled_steps():
    """One graph and the same buffers, whatever rows do: idle, filled, taken out, cleared, and begun in the graph."""
    plain, model = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12)
    texts = [random_ids(120, seed=seed) for seed in range(4)]
    expected = [naive_logits(plain, text, 4, 12) for text in texts]
    caches = [stream(model, texts[number][None, :fed])[1] for number, fed in enumerate((30, 5, 60))]
    batch = AttentionSinkKVCache.stack([caches[0], *[AttentionSinkKVCache(model)] * 3])
    forward, places = compiled(model), storages_of(batch)
    rows, aside, checked = {0: 0}, [], 0  # which text is in which row
    acts = {
        10: lambda: (batch.put(2, caches[1]), rows.update({2: 1})),
        20: lambda: (batch.put(1, caches[2]), rows.update({1: 2})),
        30: lambda: (aside.append(batch.take(0)), batch.clear_rows([0]), rows.pop(0)),
        40: lambda: rows.update({0: 3}),  # its first token is fed inside the graph
        50: lambda: (batch.clear_rows([1]), batch.put(1, aside[0]), rows.update({1: 0})),
    }
    for step in range(80):
        acts.get(step, int)()
        seen, ids, mask = batch.tokens_seen.tolist(), torch.zeros(4, 1).long(), torch.zeros(4, 1).long()
        for row, number in rows.items():
            ids[row], mask[row] = texts[number][seen[row]], 1
        logits = feed(forward, ids, batch, mask)
        for row, number in rows.items():
            assert_close(logits[row, 0], expected[number][seen[row]])
            checked += 1
    assert checked > 150 and batch.tokens_seen.tolist() == [40, 90, 75, 0]
    assert graphs() == 1 and storages_of(batch) == places
    assert_close(feed(forward, texts[0][None, 60:70], aside[0])[0], expected[0][60:70])


def test_other_calls_break_the_graph_and_run_as_always():
    """A long call, or a call without a cache, is an error under fullgraph, and else what it is without compiling."""
    plain, model, ids = tiny_llama(), inject_attention_sinks(tiny_llama(), 4, 12), random_ids(50)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(model)(ids[None])
    forward, cache = torch.compile(model.forward, backend="eager"), AttentionSinkKVCache(model)
    with torch.no_grad():
        logits = [forward(ids[None, :30], cache=cache).logits]
        logits += [forward(ids[None, at : at + 1], cache=cache).logits for at in range(30, 50)]
    assert_close(torch.cat(logits, dim=1)[0], naive_logits(plain, ids, 4, 12))


def test_a_recording_cache_is_not_compiled():
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(50)[None]
    _, cache = stream(model, ids[:, :30])
    cache.activate_past_recording()
    assert not cache.is_compileable
    before = state_of(cache)
    with pytest.raises(torch._dynamo.exc.Unsupported), torch.no_grad():
        compiled(model)(ids[:, 30:31], cache=cache)
    assert_same_state(cache, before)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generate_compiles_by_itself(batch_size):
    """As on a GPU; what is compiled is one graph, and rows that finish early feed nothing more."""
    model = inject_attention_sinks(tiny_llama(), 4, 12)
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    prompt = random_ids(batch_size, 9)
    options = {"max_new_tokens": 60, "do_sample": False, "return_dict_in_generate": True}
    free = model.generate(prompt, **options)
    options["eos_token_id"] = free.sequences[0, 30].item()
    options["pad_token_id"] = 0
    expected = model.generate(prompt, **options)
    actual = model.generate(prompt, compile_config=config, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert actual.cache.tokens_seen.tolist() == expected.cache.tokens_seen.tolist()
    assert graphs() == 1
    again = model.generate(random_ids(batch_size, 5, seed=3), compile_config=config, **options)
    assert again.sequences.shape[1] > 5
    assert graphs() == 1


@pytest.mark.each_release
def test_the_guide_to_compiling():
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(1, 20)
    names = {"torch": torch, "model": model, "ids": ids, "AttentionSinkKVCache": AttentionSinkKVCache}
    compile_by = partial(torch.compile, backend="eager")
    with mock.patch.object(torch, "compile", compile_by):
        names = run_block("fullgraph=True", "unused", COMPILING, **names)
    expected, _ = stream(model, torch.cat([ids, ids[:, -1:]], dim=1))
    assert_close(names["outputs"].logits[0, -1], expected[0, -1])
    assert graphs() == 1


@pytest.mark.each_release
@pytest.mark.parametrize("tied", [False, True])
def test_weights_by_columns_change_nothing_but_time(tied, tmp_path):
    model, ids = inject_attention_sinks(tiny_llama(tie_word_embeddings=tied), 4, 12), random_ids(1, 40)
    before, _ = stream(model, ids)
    weight = model.model.layers[0].mlp.up_proj.weight
    run_block(".t().contiguous().t()", "unused", COMPILING, torch=torch, model=model)
    assert weight.stride() == (1, weight.shape[0])
    assert_close(stream(model, ids)[0], before)
    _, cache = stream(model, ids[:, :3])
    assert_close(feed(compiled(model, "inductor"), ids[:, 3:], cache), before[:, 3:])
    run_block("weight.data.contiguous()", "unused", COMPILING, torch=torch, model=model)
    model.save_pretrained(tmp_path)
    loaded = remove_attention_sinks(type(model).from_pretrained(tmp_path))
    for name, saved in tiny_llama(tie_word_embeddings=tied).named_parameters():
        assert torch.equal(loaded.get_parameter(name), saved) and loaded.get_parameter(name).is_contiguous()


def test_the_cache_says_what_its_counters_take():
    model, ids = inject_attention_sinks(tiny_llama(), 4, 12), random_ids(50)[None]
    _, cache = stream(model, ids[:, :30])
    before = cache.nbytes
    feed(compiled(model), ids[:, 30:], cache)
    assert cache.nbytes == before
    assert sum(tensor.nbytes for tensor in cache.streams.device.tensors) < 4096


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
def test_an_export_is_refused(strict, use_cache):
    model, ids = streaming_llama(), random_ids(1, 8)
    with pytest.raises((NotImplementedError, torch._dynamo.exc.Unsupported)) as caught, torch.no_grad():
        torch.export.export(model, (ids,), {"use_cache": use_cache}, strict=strict)
    assert "cannot be exported" in str(caught.value) and "remove_attention_sinks(model)" in str(caught.value)
    with torch.no_grad():
        exported = torch.export.export(remove_attention_sinks(model), (ids,), {"use_cache": False}, strict=strict)
    assert_close(exported.module()(ids, use_cache=False).logits, plain_logits(tiny_llama(), ids))
