"""Putting attention sinks into a model that is already there, and taking them out again."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import attention_sinks
from attention_sinks import (
    AttentionSinkKVCache,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
)
from attention_sinks.versions import CACHE
from references.naive import naive_logits
from support.helpers import TEETH, assert_close, cut, largest_difference, plain_logits, random_ids, stream, tiny_llama

pytestmark = pytest.mark.each_release

S, W = 4, 12
IDS = random_ids(80)


def assert_streams(model, sinks=S, window=W, expected=None):
    logits, cache = stream(model, IDS[None], [20, 1, 1, 1, 27, 30])
    assert isinstance(cache, AttentionSinkKVCache)
    assert_close(logits[0], naive_logits(tiny_llama(), IDS, sinks, window) if expected is None else expected)


def state_of_modules(model):
    """Every attribute of every module, containers copied, and the class it belongs to."""

    def frozen(value):
        return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value

    return {
        name: (type(module), {key: frozen(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }


def assert_unchanged(model, before):
    after = state_of_modules(model)
    assert after.keys() == before.keys()
    for name, (kind, attributes) in before.items():
        assert after[name][0] is kind, name
        assert after[name][1].keys() == attributes.keys(), name
        for key, value in attributes.items():
            now = after[name][1][key]
            same = now == value if isinstance(value, (dict, list, int, str, float)) else now is value
            assert same, f"{name}.{key} was {value!r} and is {now!r}"


def test_returns_the_model_itself():
    model = tiny_llama()
    assert inject_attention_sinks(model, S, W) is model
    assert isinstance(model, LlamaForCausalLM) and type(model).__name__ == "LlamaForCausalLM"
    assert_streams(model)


def test_injecting_twice_replaces_the_settings():
    model = inject_attention_sinks(tiny_llama(), 1, 20)
    assert_streams(model, 1, 20)
    assert inject_attention_sinks(model, S, W) is model
    assert_streams(model)
    remove_attention_sinks(model)
    assert_close(plain_logits(model, IDS[None]), plain_logits(tiny_llama(), IDS[None]), 0)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_removing_gives_back_exactly_what_was_there(implementation, times, used):
    model = tiny_llama(attn_implementation=implementation)
    before, config = state_of_modules(model), copy.deepcopy(model.config.to_dict())
    class_before = {
        k: dict(vars(k)) for k in (LlamaForCausalLM, modeling_llama.LlamaModel, modeling_llama.LlamaAttention)
    }
    for i in range(times):
        inject_attention_sinks(model, S, W + i)
    if used:
        stream(model, IDS[None], [50, 30])
        model.generate(IDS[None, :5], max_new_tokens=5)
    remove_attention_sinks(model)
    assert_unchanged(model, before)
    assert model.config.to_dict() == config and model.config._attn_implementation == implementation
    for kind, attributes in class_before.items():
        assert dict(vars(kind)) == attributes
    assert torch.equal(
        plain_logits(model, IDS[None]), plain_logits(tiny_llama(attn_implementation=implementation), IDS[None])
    )
    outputs = model(IDS[None, :5])
    assert not isinstance(outputs[CACHE], AttentionSinkKVCache)


def test_removing_returns_the_model_and_can_be_followed_by_another_injection():
    model = inject_attention_sinks(tiny_llama(), 2, 5)
    assert remove_attention_sinks(model) is model
    assert_streams(inject_attention_sinks(model, S, W))


def test_hooks_of_others_survive():
    model, seen = tiny_llama(), []
    model.model.register_forward_pre_hook(lambda module, args: seen.append("before"))
    inject_attention_sinks(model, S, W)
    model.model.register_forward_hook(lambda module, args, output: seen.append("after"))
    plain_logits(model, IDS[None])
    assert set(seen) == {"before", "after"}
    remove_attention_sinks(model)
    seen.clear()
    plain_logits(model, IDS[None])
    assert seen == ["before", "after"]


def test_context_manager_injects_and_removes():
    model = tiny_llama()
    before = state_of_modules(model)
    with attention_sinks_injected(model, attention_sink_size=S, attention_sink_window_size=W) as inside:
        assert inside is model
        assert_streams(model)
    assert_unchanged(model, before)


def test_context_manager_removes_after_an_error():
    model = tiny_llama()
    before = state_of_modules(model)
    with pytest.raises(KeyError), attention_sinks_injected(model, S, W):
        raise KeyError("of the user's own")
    assert_unchanged(model, before)


def test_context_manager_restores_the_settings_it_found():
    model = inject_attention_sinks(tiny_llama(), S, W)
    with attention_sinks_injected(model, 1, 5):
        assert_streams(model, 1, 5)
    assert_streams(model)


def test_the_bare_decoder_can_be_injected():
    plain = tiny_llama()
    model = inject_attention_sinks(tiny_llama().model, S, W)
    with torch.no_grad():
        hidden = model(IDS[None]).last_hidden_state
    assert_close(plain.lm_head(hidden)[0], naive_logits(plain, IDS, S, W))


def test_another_model_of_the_class_stays_plain():
    inject_attention_sinks(tiny_llama(), S, W)
    other = tiny_llama()
    assert largest_difference(plain_logits(other, IDS[None])[0], naive_logits(other, IDS, S, W)) > TEETH


# --- copies and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True])
def test_a_deep_copy_streams_on_its_own(used):
    model = inject_attention_sinks(tiny_llama(), S, W)
    if used:
        stream(model, IDS[None])
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_streams(twin)
    sequence = twin.generate(IDS[None, :10], max_new_tokens=30, do_sample=False)[0]
    chosen = naive_logits(tiny_llama(), sequence, S, W)[9:-1].argmax(-1)
    assert torch.equal(sequence[10:], chosen)


def test_removing_from_the_copy_leaves_the_original():
    model = inject_attention_sinks(tiny_llama(), S, W)
    twin = remove_attention_sinks(copy.deepcopy(model))
    assert torch.equal(plain_logits(twin, IDS[None]), plain_logits(tiny_llama(), IDS[None]))
    assert_streams(model)


def test_new_settings_of_the_copy_leave_the_original():
    model = inject_attention_sinks(tiny_llama(), S, W)
    twin = inject_attention_sinks(copy.deepcopy(model), 0, 5)
    assert_streams(twin, 0, 5)
    assert_streams(model)


def test_pickling_the_model():
    model = inject_attention_sinks(tiny_llama(), S, W)
    twin = pickle.loads(pickle.dumps(model))
    assert_streams(twin)
    assert torch.equal(plain_logits(remove_attention_sinks(twin), IDS[None]), plain_logits(tiny_llama(), IDS[None]))


def test_torch_save_and_load_of_the_model(tmp_path):
    torch.save(inject_attention_sinks(tiny_llama(), S, W), tmp_path / "model.pt")
    assert_streams(torch.load(tmp_path / "model.pt", weights_only=False))


def test_a_saved_model_is_a_plain_checkpoint(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "plain")
    model = inject_attention_sinks(tiny_llama(), S, W)
    stream(model, IDS[None])
    model.save_pretrained(tmp_path / "sinks")
    names = sorted(file.name for file in (tmp_path / "plain").iterdir())
    assert sorted(file.name for file in (tmp_path / "sinks").iterdir()) == names
    for name in names:
        assert (tmp_path / "sinks" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    assert "sink" not in (tmp_path / "sinks" / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sinks")
    assert torch.equal(plain_logits(loaded, IDS[None]), plain_logits(tiny_llama(), IDS[None]))


def test_weights_keep_their_names():
    model = inject_attention_sinks(tiny_llama(), S, W)
    assert model.state_dict().keys() == tiny_llama().state_dict().keys()
    assert dict(model.named_buffers()).keys() == dict(tiny_llama().named_buffers()).keys()
    other = tiny_llama(seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(plain_logits(other, IDS[None]), plain_logits(tiny_llama(), IDS[None]))


# --- changes after injection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first, then", [("sdpa", "eager"), ("eager", "sdpa")])
def test_set_attn_implementation_after_injection(first, then):
    model = inject_attention_sinks(tiny_llama(attn_implementation=first), S, W)
    assert_streams(model)
    model.set_attn_implementation(then)
    assert model.config._attn_implementation == then
    assert_streams(model)
    remove_attention_sinks(model)
    assert model.config._attn_implementation == then
    assert_close(plain_logits(model, IDS[None]), plain_logits(tiny_llama(), IDS[None]))


def test_attentions_after_switching_to_eager():
    model = inject_attention_sinks(tiny_llama(attn_implementation="sdpa"), S, W)
    _, cache = stream(model, IDS[None, :50])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(IDS[None, 50:51], cache=cache, output_attentions=True)
    assert all(weights.shape == (1, 4, 1, S + W + 1) for weights in outputs.attentions)
    assert_close(outputs.logits[0, 0], naive_logits(tiny_llama(), IDS[:51], S, W)[50])


def test_moving_to_another_dtype_after_injection():
    model = inject_attention_sinks(tiny_llama(), S, W).to(torch.float64)
    logits, cache = stream(model, IDS[None], cut(80, [1, 20]))
    assert logits.dtype == torch.float64
    assert_close(logits[0], naive_logits(tiny_llama(), IDS, S, W))


def test_the_package_names_a_version():
    major, minor = attention_sinks.__version__.split(".")[:2]
    assert (int(major), int(minor)) >= (0, 5)
