"""save() and load(): to go on after a load is never to have stopped; no other file is taken for a cache."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks
from attention_sinks.cache.storage import read_file, write_file
from support.contract import left_padded, pattern, stream_rows
from support.helpers import S, W, assert_same_state, random_ids, refused, state_of, stored_bytes, stream, tiny_llama

pytestmark = pytest.mark.each_release

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stream.safetensors"


def assert_goes_on_alike(model, one, other):
    """The same bits from both, in steps and blocks, over two windows and more."""
    assert repr(one) == repr(other) and one.get_seq_length() == other.get_seq_length()
    rows = max(1, one.batch_size)
    for length in (1, 1, 5, 1, 30, 1):
        ids = random_ids(rows, length, seed=length)
        first, second = (stream(model, ids, cache=cache)[0] for cache in (one, other))
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filled", [1, S, S + W, S + W + 1, 25, 200], ids=str)
def test_going_on_after_a_load_is_never_having_stopped(path, dtype, filled):
    model = inject_attention_sinks(tiny_llama().to(dtype), S, W)
    _, cache = stream(model, random_ids(1, filled))
    stream(model, random_ids(1, 2, seed=1), [1, 1], cache)
    before = state_of(cache)
    cache.save(path)
    assert_same_state(cache, before)
    assert_goes_on_alike(model, AttentionSinkKVCache.load(path, model), cache)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_differ(path, dtype):
    model = inject_attention_sinks(tiny_llama().to(dtype), S, W)
    shapes = [left_padded([90, 20, 3]), pattern("x", ".", "x"), pattern("xx.", "xxx", "...")]
    counts = sum(shape.sum(1) for shape in shapes).tolist()
    _, cache = stream_rows(model, [random_ids(count, seed=r) for r, count in enumerate(counts)], shapes)
    cache.save(path)
    loaded = AttentionSinkKVCache.load(path, model)
    assert loaded.tokens_seen.tolist() == counts
    assert_goes_on_alike(model, loaded, cache)


@pytest.mark.parametrize("rope", ["dynamic", "longrope", "yarn"])
def test_other_rotary_embeddings(path, rope):
    model = inject_attention_sinks(tiny_llama(rope=rope), S, W)
    _, cache = stream(model, random_ids(1, 100))
    cache.save(path)
    assert_goes_on_alike(model, AttentionSinkKVCache.load(path, model), cache)


@pytest.mark.parametrize("sizes", [(0, 16), (9, 3), (1, 40)], ids=str)
def test_sizes_belong_to_the_saved_cache(path, model, sizes):
    _, cache = stream(model, random_ids(1, 100), cache=AttentionSinkKVCache(model, *sizes))
    cache.save(path)
    inject_attention_sinks(model, 2, 5)
    loaded = AttentionSinkKVCache.load(path, model)
    assert (loaded.settings.sink_size, loaded.settings.window_size) == sizes
    assert_goes_on_alike(model, loaded, cache)


def test_dense_prefill(path):
    model = inject_attention_sinks(tiny_llama(), S, W, "dense")
    _, cache = stream(model, random_ids(1, 100), [60, 1, 39])
    cache.save(path)
    assert_goes_on_alike(model, AttentionSinkKVCache.load(path, model), cache)


def test_an_empty_cache(path, model):
    AttentionSinkKVCache(model).save(path)
    assert_goes_on_alike(model, AttentionSinkKVCache.load(path, model), AttentionSinkKVCache(model))


def test_a_loaded_cache_owns_its_memory(path, model):
    """The file may go, be written again, and be loaded many times."""
    _, cache = stream(model, random_ids(1, 60))
    cache.save(path)
    first, second = (AttentionSinkKVCache.load(path, model) for _ in range(2))
    assert first.nbytes == cache.nbytes == stored_bytes(first)
    stream(model, random_ids(1, 60, seed=1), [1] * 60, first)
    cache.save(path)
    path.unlink()
    assert_goes_on_alike(model, second, cache)


def test_saved_in_inference_mode_loaded_out_of_it(path, model):
    with torch.inference_mode():
        _, cache = stream(model, random_ids(1, 60))
        cache.save(path)
        inside = AttentionSinkKVCache.load(path, model)
    assert_goes_on_alike(model, inside, cache)


def test_the_one_free_token_can_still_be_taken_back(path, model):
    """What was recorded is not saved."""
    _, cache = stream(model, random_ids(1, 60))
    cache.activate_past_recording()
    stream(model, random_ids(1, 20, seed=1), [1, 19], cache)
    cache.save(path)
    loaded = AttentionSinkKVCache.load(path, model)
    assert not loaded.is_recording
    refused(ValueError, lambda: loaded.crop(-2), "crop(-2)", "1 of the columns")
    for one in (cache, loaded):
        one.crop(-1)
    cache.deactivate_past_recording()
    assert_goes_on_alike(model, loaded, cache)


def test_padding_that_can_be_taken_back_is_saved(path, model):
    _, cache = stream_rows(model, [random_ids(9), random_ids(4, seed=1)], [left_padded([6, 3]), pattern("xxx", ".x.")])
    cache.save(path)
    loaded = AttentionSinkKVCache.load(path, model)
    for one in (cache, loaded):
        one.crop(-2)
    assert loaded.tokens_seen.tolist() == [7, 3]
    assert_goes_on_alike(model, loaded, cache)


def test_generate_goes_on(path, model):
    options = {"max_new_tokens": 30, "do_sample": False}
    outputs = model.generate(random_ids(1, 40), return_dict_in_generate=True, **options)
    outputs.cache.save(path)
    turn = torch.cat([outputs.sequences, random_ids(1, 5, seed=1)], dim=1)
    mask = torch.ones_like(turn)
    loaded = AttentionSinkKVCache.load(path, model)
    made = model.generate(turn, attention_mask=mask, cache=loaded, **options)
    assert torch.equal(made, model.generate(turn, attention_mask=mask, cache=outputs.cache, **options))


LOADER = """
import sys, torch
from attention_sinks import AttentionSinkKVCache, LlamaForCausalLM
torch.set_num_threads(1)
folder, cache, ids, logits = sys.argv[1:]
model = LlamaForCausalLM.from_pretrained(folder, attention_sink_size=2, attention_sink_window_size=7).eval()
cache, parts = AttentionSinkKVCache.load(cache, model), []
with torch.no_grad():
    for part in torch.load(ids).split([1, 1, 20, 1], dim=1):
        parts.append(model(part, cache=cache).logits)
torch.save(torch.cat(parts, dim=1), logits)
"""


def test_another_process_with_the_checkpoint_loaded_anew(tmp_path, path):
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    model = attention_sinks.LlamaForCausalLM.from_pretrained(folder).eval()
    inject_attention_sinks(model, S, W)
    _, cache = stream(model, random_ids(2, 60), [50, 1, 1, 8])
    cache.save(path)
    rest = random_ids(2, 23, seed=1)
    torch.save(rest, tmp_path / "ids")
    source = os.path.dirname(os.path.dirname(attention_sinks.__file__))
    subprocess.run(
        [sys.executable, "-c", LOADER, folder, path, tmp_path / "ids", tmp_path / "logits"],
        check=True,
        env={**os.environ, "PYTHONPATH": source},
        timeout=300,
    )
    assert torch.equal(torch.load(tmp_path / "logits"), stream(model, rest, [1, 1, 20, 1], cache)[0])


# ---- what is refused


def saved(path, model):
    _, cache = stream(model, random_ids(1, 40))
    cache.save(path)
    return cache


OTHER_MODELS = {
    "other weights": lambda: tiny_llama(seed=1),
    "one weight trained": lambda: one_step_on(tiny_llama()),
    "another dtype": lambda: tiny_llama().to(torch.bfloat16),
    "other depth": lambda: tiny_llama(num_hidden_layers=3),
    "other heads": lambda: tiny_llama(num_key_value_heads=4),
    "other head size": lambda: tiny_llama(head_dim=8),
    "other rotary type": lambda: tiny_llama(rope="linear"),
    "other rotary base": lambda: tiny_llama(rope={"rope_type": "default", "rope_theta": 500.0}),
}


def one_step_on(model):
    model.model.layers[1].self_attn.v_proj.weight.data -= 1e-5
    return model


@pytest.mark.parametrize("other", OTHER_MODELS)
def test_the_cache_of_another_model(path, model, other):
    saved(path, model)
    before = path.read_bytes()
    other = inject_attention_sinks(OTHER_MODELS[other](), S, W)
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, other), path, "another model")
    assert path.read_bytes() == before


def test_another_prefill_mode(path, model):
    saved(path, model)
    inject_attention_sinks(model, S, W, "dense")
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path, "attention_sink_prefill", "'streaming'")


def test_a_model_without_sinks(path, model):
    saved(path, model)
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, tiny_llama()), "inject_attention_sinks")


def test_a_missing_file(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="nothing"):
        AttentionSinkKVCache.load(tmp_path / "nothing", model)
    with pytest.raises(OSError):
        AttentionSinkKVCache.load(tmp_path, model)


@pytest.mark.parametrize("share", [0, 1e-6, 0.01, 0.5, 0.999])
def test_a_truncated_file(path, model, share):
    saved(path, model)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data))])
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path, "truncated")


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_an_altered_file(path, model, place):
    """One bit, anywhere: in the header, in keys or values, at the end."""
    saved(path, model)
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(place * len(data)))] ^= 4
    path.write_bytes(data)
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path)


def test_altered_counters(path, model):
    saved(path, model)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    state = json.loads(metadata["state"])
    state["rows"]["seen"] = [39]
    save_file(tensors, path, {**metadata, "state": json.dumps(state, sort_keys=True)})
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path, "checksum")


def test_another_format_version(path, model):
    saved(path, model)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({}, path, {**metadata, "version": "2"})
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path, "version 2")


FOREIGN = {
    "text": lambda path, model: path.write_text("hello" * 100),
    "pickle": lambda path, model: path.write_bytes(pickle.dumps({"keys": [1, 2, 3]})),
    "torch": lambda path, model: torch.save(torch.zeros(3), path),
    "weights": lambda path, model: save_file(
        {name: weight.clone() for name, weight in model.state_dict().items()}, path
    ),
    "weights of transformers": lambda path, model: save_file({"a": torch.zeros(3)}, path, {"format": "pt"}),
    "another thing of this library": lambda path, model: write_file(path, {"a": torch.zeros(3)}, {"kind": "Other"}),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_files(path, model, foreign):
    FOREIGN[foreign](path, model)
    refused(ValueError, lambda: AttentionSinkKVCache.load(path, model), path)


def test_a_write_that_fails_leaves_the_old_file(path, model, monkeypatch):
    old = saved(path, model)
    before = path.read_bytes()
    _, cache = stream(model, random_ids(1, 70))

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        cache.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    assert_goes_on_alike(model, AttentionSinkKVCache.load(path, model), old)
    with pytest.raises(OSError):
        cache.save(path.parent / "no" / "folder")


def test_the_file_is_safetensors_and_says_what_it_is(path, model):
    """Nothing in it is executed; header and keys can be read by anyone."""
    cache = saved(path, model)
    tensors, state = read_file(path)
    assert state["settings"] == [S, W, "streaming"] and state["rows"]["seen"] == [40]
    stored = sum(tensor.nbytes for layer in cache.layers for tensor in layer.tensors)
    assert sum(tensor.nbytes for tensor in tensors.values()) == stored
    assert path.stat().st_size < cache.nbytes + 10_000


def test_the_path_may_be_a_string(path, model):
    cache = saved(str(path), model)
    assert_goes_on_alike(model, AttentionSinkKVCache.load(str(path), model), cache)


def test_layers_of_another_kind_are_refused(path, model):
    cache = AttentionSinkKVCache(model)
    cache.layers[0] = object()
    refused(NotImplementedError, lambda: cache.save(path), "save", "layer 0")
    assert not path.exists()


# ---- copies and pickles


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy])
def test_a_cache_is_not_pickled(model, copied):
    _, cache = stream(model, random_ids(1, 20))
    refused(TypeError, lambda: copied(cache), "save(path)", "load(path, model)", "copy.deepcopy")


def test_a_model_and_its_cache_are_copied_together(model):
    _, cache = stream(model, random_ids(1, 60))
    other, fork = copy.deepcopy((model, cache))
    refused(ValueError, lambda: stream(model, random_ids(1, 1), cache=fork), "another model")
    rest = random_ids(1, 30, seed=1)
    assert torch.equal(stream(other, rest, cache=fork)[0], stream(model, rest, cache=cache)[0])
