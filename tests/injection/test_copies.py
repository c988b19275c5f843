"""Shallow copies of an injected model, which share modules or attributes with it, and heads that share a base model."""

import copy

import pytest
import torch
from accelerate.utils import compile_regions
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from attention_sinks import (
    AttentionSinkKVCache,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
    verify_attention_sinks,
)
from attention_sinks.architecture.setup import setup_of
from references.naive import naive_logits
from support.helpers import S, W, assert_close, plain_logits, refused, stream, streaming_llama, tiny_config, tiny_llama
from support.injected import CALLS, IDS, assert_generates, assert_plain, assert_streams


def replicated(model, weights):
    """A replica as `torch.nn.parallel.replicate` makes one for a device, with `weights(parameter)` as its weights."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in copies.items():
        for name, child in module._modules.items():
            setattr(replica, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, weights(parameter.detach()))
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer.clone())
    return copies[model]


def same_weights(model):
    return replicated(model, torch.clone)


def compiled(model):
    return compile_regions(model, backend="eager")


SHALLOW = {"replicate": same_weights, "compile_regions": compiled, "copy": copy.copy}


@pytest.fixture
def without_compiling():
    """The modules that `compile_regions` makes run what they would compile."""
    with torch.compiler.set_stance("force_eager"):
        yield


# ---- the copy runs its own modules


def test_a_replica_runs_its_own_weights():
    model = streaming_llama()
    assert plain_logits(replicated(tiny_llama(), torch.zeros_like), IDS[None]).count_nonzero() == 0
    nothing = replicated(model, torch.zeros_like)
    assert plain_logits(nothing, IDS[None]).count_nonzero() == 0
    assert stream(nothing, IDS[None], CALLS)[0].count_nonzero() == 0
    assert_streams(model)


@pytest.mark.parametrize("shallow", SHALLOW)
def test_a_shallow_copy_streams(shallow):
    model = streaming_llama()
    twin = SHALLOW[shallow](model)
    assert_streams(twin)
    expected = naive_logits(tiny_llama(), IDS, S, W)
    assert_close(stream(twin, IDS[None], CALLS, AttentionSinkKVCache(twin))[0][0], expected)
    with torch.no_grad():
        assert_close(twin(IDS[None], use_cache=False).logits[0], expected)
    assert_streams(model)


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("shallow", ["compile_regions", "copy"])  # a replica has no parameters, so it cannot generate
def test_a_shallow_copy_generates(shallow):
    twin = SHALLOW[shallow](streaming_llama())
    assert_generates(twin)


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("shallow", ["replicate", "compile_regions"])
def test_a_cache_belongs_to_the_copy_it_was_made_for(shallow):
    model = streaming_llama()
    twin = SHALLOW[shallow](model)
    assert setup_of(twin).model is twin.model and setup_of(model).model is model.model
    cache = AttentionSinkKVCache(twin)
    stream(twin, IDS[None], CALLS, cache)
    refused(ValueError, lambda: stream(model, IDS[None, :1], cache=cache), "another model")


def test_a_copy_of_a_copy_streams():
    assert_streams(same_weights(same_weights(streaming_llama())))
    assert_streams(copy.deepcopy(copy.copy(streaming_llama())))


# ---- inject and remove


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("shallow", ["replicate", "compile_regions"])
@pytest.mark.parametrize(
    "change",
    [
        inject_attention_sinks,
        remove_attention_sinks,
        verify_attention_sinks,
        lambda m: attention_sinks_injected(m).__enter__(),
    ],
    ids=["inject", "remove", "verify", "block"],
)
def test_a_copy_with_a_base_model_of_its_own_cannot_be_changed(shallow, change):
    model = streaming_llama()
    twin = SHALLOW[shallow](model)
    refused(ValueError, lambda: change(twin), "LlamaModel is a shallow copy", "with the original")
    assert_streams(twin)
    assert_streams(model)


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("shallow", ["replicate", "compile_regions"])
def test_a_copy_cannot_run_without_the_sinks_of_its_original(shallow):
    model = streaming_llama()
    twin = SHALLOW[shallow](model)
    assert_streams(twin)
    remove_attention_sinks(model)
    refused(ValueError, lambda: stream(twin, IDS[None]), "has lost its attention sinks", "copy it again")
    refused(ValueError, lambda: AttentionSinkKVCache(twin), "has lost its attention sinks")
    assert_plain(model)
    assert_plain(SHALLOW[shallow](model))


@pytest.mark.usefixtures("without_compiling")
@pytest.mark.parametrize("shallow", ["replicate", "compile_regions"])
def test_a_copy_keeps_the_settings_it_was_made_with(shallow):
    model = streaming_llama()
    twin = SHALLOW[shallow](model)
    inject_attention_sinks(model, 1, 20)
    assert_streams(twin)
    assert_streams(model, 1, 20)


@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copied_head_shares_the_base_model(first):
    """`copy.copy` copies the head alone: what is done to either is done to both."""
    model = streaming_llama()
    twin = copy.copy(model)
    assert twin.model is model.model
    one, other = (model, twin) if first == "original" else (twin, model)
    inject_attention_sinks(one, 1, 20)
    assert_streams(model, 1, 20)
    assert_streams(twin, 1, 20)
    remove_attention_sinks(one)
    assert_plain(model)
    assert_plain(twin)
    remove_attention_sinks(other)
    for each in (model, twin):
        assert type(each) is LlamaForCausalLM
        each.generate(IDS[None, :5], max_new_tokens=3, do_sample=False)


# ---- several heads


def heads():
    plain = tiny_llama()
    other = LlamaForSequenceClassification(tiny_config(pad_token_id=0)).eval()
    twin = LlamaForCausalLM(tiny_config()).eval()
    other.model = twin.model = plain.model
    twin.lm_head = plain.lm_head
    return plain, other, twin


def test_heads_of_one_base_model_stream_together():
    one, other, twin = heads()
    for head in (one, other, twin):
        inject_attention_sinks(head, S, W)
    assert_streams(one)
    assert_streams(twin)
    for head in (one, twin):
        assert_generates(head)
    with torch.no_grad():
        assert other(IDS[None]).logits.shape == (1, 2)


@pytest.mark.parametrize("last", range(4), ids=["first", "other", "last", "base"])
def test_removing_through_any_head_frees_all(last):
    one, other, twin = heads()
    before = [vars(head).copy() for head in (one, other, twin)]
    for head in (one, other, twin):
        inject_attention_sinks(head, S, W)
    remove_attention_sinks((one, other, twin, one.model)[last])
    assert [vars(head) for head in (one, other, twin)] == before
    assert [type(head) for head in (one, other, twin)] == [
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaForCausalLM,
    ]
    assert_plain(one)
    assert_plain(twin)
    assert_streams(inject_attention_sinks(twin, S, W))


def test_a_block_around_another_head_leaves_the_first():
    one, _, twin = heads()
    inject_attention_sinks(one, S, W)
    with attention_sinks_injected(twin, 1, 20):
        assert_streams(twin, 1, 20)
        assert_streams(one, 1, 20)
    assert type(twin) is LlamaForCausalLM
    assert_streams(one)


# ---- compiled code


def graphs(model, cached):
    """How many graphs `compile_regions` makes for a call, which without a cache has gradients."""
    made = 0

    def backend(graph, inputs):
        nonlocal made
        made += 1
        return graph.forward

    torch._dynamo.reset()
    twin = compile_regions(model, backend=backend)
    with torch.set_grad_enabled(not cached):
        twin(IDS[None, :20], use_cache=cached)
    return made


def test_layers_share_compiled_code():
    """Without a cache one graph serves all layers; caches have objects of their own for each, with or without sinks."""
    for layers in (2, 5):
        plain, model = tiny_llama(num_hidden_layers=layers), streaming_llama(num_hidden_layers=layers)
        assert graphs(model, cached=False) == graphs(plain, cached=False) == 5
        assert graphs(model, cached=True) <= graphs(plain, cached=True)
