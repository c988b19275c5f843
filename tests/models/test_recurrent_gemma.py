"""RecurrentGemma, whose own states lie on its modules: here nothing of a stream does."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import accelerate
import pytest
import torch

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, remove_attention_sinks
from references.replay import replay_logits
from support.helpers import assert_close, assert_same_state, cut, random_ids, state_of, stream
from support.zoo import ZOO

if not (FOUND := [animal for animal in ZOO if animal.model_type == "recurrent_gemma"]):
    pytest.skip("this Transformers has no RecurrentGemma that streams", allow_module_level=True)

ANIMAL = FOUND[0]
IDS = random_ids(60)


@pytest.fixture
def model():
    return inject_attention_sinks(ANIMAL.build(), 4, 12)


@pytest.fixture(scope="module")
def right():
    return replay_logits(ANIMAL.build(), IDS, 4, 12)


def states_on_modules(model):
    blocks = [layer.temporal_block for layer in model.model.layers if hasattr(layer.temporal_block, "rg_lru")]
    assert blocks
    return [state for block in blocks for state in (block.conv1d_state, block.rg_lru.recurrent_states)]


def test_nothing_of_a_stream_is_on_a_module(model):
    before = states_on_modules(model)
    stream(model, IDS[None], [20, 1, 39])
    model.generate(IDS[None, :5], max_new_tokens=3)
    assert all(now is then for now, then in zip(states_on_modules(model), before, strict=True))


def test_states_that_plain_calls_left_behind_do_no_harm(right):
    plain = ANIMAL.build()
    plain.generate(IDS[None, :5], max_new_tokens=3, do_sample=False)
    assert states_on_modules(plain)[0] is not None
    assert_close(stream(inject_attention_sinks(plain, 4, 12), IDS[None], [7, 53])[0][0], right)


def test_streams_of_several_threads(model, right):
    def read(lengths):
        return stream(model, IDS[None], cut(60, lengths))[0][0]

    with ThreadPoolExecutor(3) as pool:
        for logits in pool.map(read, [[1], [7], [60]] * 2):
            assert_close(logits, right)


def test_its_head_hands_out_the_cache(model):
    outputs = model(IDS[None, :9])
    assert isinstance(outputs.cache, AttentionSinkKVCache)
    assert model(IDS[None, 9:], cache=outputs.cache).cache is outputs.cache
    assert outputs.cache.tokens_seen.tolist() == [60]
    assert model(IDS[None], use_cache=False).cache is None
    cache = AttentionSinkKVCache(model)
    assert_close(model(IDS[None, :9], cache=cache, return_dict=False)[0], outputs.logits)


def test_a_call_that_breaks_off_leaves_its_states_as_they_were(model, right):
    _, cache = stream(model, IDS[None, :30])
    before = state_of(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.model.final_norm), "forward", lambda *args: 1 / 0)
        for columns in (1, 5):
            with pytest.raises(ZeroDivisionError):
                model(IDS[None, :columns], cache=cache)
    assert_same_state(cache, before)
    assert_close(stream(model, IDS[None, 30:], cache=cache)[0][0], right[30:])


def test_gradients_are_those_of_plain_transformers(model):
    plain = ANIMAL.build()
    for either in (model, plain):
        either.train()
        either(IDS[None, :15], labels=IDS[None, :15]).loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4), name


def test_gradients_pass_through_a_call_that_goes_on(model):
    _, cache = stream(model, IDS[None, :30])
    model(IDS[None, 30:], cache=cache).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.model.layers.parameters())


def test_weights_that_are_elsewhere(right):
    model = accelerate.cpu_offload(ANIMAL.build(), execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.model.layers[0].temporal_block.rg_lru.parameters())
    for wrapped in (model, copy.deepcopy(model)):
        assert_close(stream(inject_attention_sinks(wrapped, 4, 12), IDS[None], [30, 1, 29])[0][0], right)
    assert_close(model(IDS[None, :15]).logits, remove_attention_sinks(model)(IDS[None, :15]).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_model_of_its_own(model, copied, right):
    twin = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_close(stream(twin, IDS[None], [30, 1, 29])[0][0], right)
