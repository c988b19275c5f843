"""What others do to a model's classes and modules, before and after injection, and what they see of it."""

import copy
import inspect
import itertools
import pickle
import types
from contextlib import contextmanager
from functools import wraps
from unittest import mock

import accelerate
import peft
import pytest
import torch
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from attention_sinks import inject_attention_sinks, remove_attention_sinks
from attention_sinks.architecture.modules import _PARAMETER_NAMES
from attention_sinks.architecture.streaming_class import _CLASSES
from references.naive import naive_logits
from support.helpers import (
    TEETH,
    S,
    W,
    assert_close,
    largest_difference,
    plain_logits,
    refused,
    stream,
    streaming_llama,
    tiny_config,
    tiny_llama,
)
from support.injected import CALLS, IDS, assert_generates, assert_plain, assert_streams
from support.zoo import animal_of

CLASSES = [LlamaForCausalLM, LlamaModel, LlamaDecoderLayer, LlamaAttention]
BOTH_WAYS = pytest.mark.parametrize("injected", ["before", "after"])


# ---- what others see


def test_modules_look_like_those_of_transformers():
    plain, model = tiny_llama(), streaming_llama()
    for one, other in zip(plain.modules(), model.modules(), strict=True):
        kind = type(one)
        assert isinstance(other, kind) and issubclass(type(other), kind)
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(type(other), name) == getattr(kind, name)
        assert str(type(other)) == str(kind)
        for name in ("forward", "__init__"):
            found, expected = getattr(other, name), getattr(one, name)
            assert inspect.signature(found) == inspect.signature(expected)
            for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(found, attribute) == getattr(expected, attribute)
        assert one.__dict__.keys() ^ other.__dict__.keys() <= {"_attention_sinks"}
    assert model.can_generate() and not model.model.can_generate()
    for name in ("generate", "prepare_inputs_for_generation"):
        assert inspect.signature(getattr(model, name)) == inspect.signature(getattr(plain, name))


def test_modules_alike_share_a_class():
    one, other = streaming_llama(), inject_attention_sinks(tiny_llama(), 1, 20)
    assert type(one) is type(other) and type(one.model.layers[0].self_attn) is type(other.model.layers[1].self_attn)


def test_a_new_object_of_the_class_has_no_sinks(tmp_path):
    """`type(model)(config)`, `type(model).from_pretrained` and the like are common."""
    model = streaming_llama()
    for made in (
        type(model)(tiny_config()),
        type(model)._from_config(tiny_config()),
        type(model.model)(tiny_config()),
        type(model.model.layers[0].self_attn)(tiny_config(), layer_idx=0),
    ):
        assert type(made) in CLASSES
    tiny_llama().save_pretrained(tmp_path)
    made = type(model).from_pretrained(tmp_path)
    assert type(made) is LlamaForCausalLM
    assert_plain(made)
    assert_streams(inject_attention_sinks(made, S, W))


def test_a_class_of_the_users_own():
    class Own(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = 2 * outputs.logits
            return outputs

    model = inject_attention_sinks(tiny_llama(model_class=Own), S, W)
    assert isinstance(model, Own) and type(model).__name__ == "Own"
    assert_close(stream(model, IDS[None], CALLS)[0][0] / 2, naive_logits(tiny_llama(), IDS, S, W))
    assert type(remove_attention_sinks(model)) is Own
    assert_close(plain_logits(model, IDS[None]) / 2, plain_logits(tiny_llama(), IDS[None]))


@pytest.mark.parametrize("wrapped", [False, True])
def test_repr_shows_the_sinks(wrapped):
    model = tiny_llama()
    if wrapped:
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = repr(model)
    inject_attention_sinks(model, 3, 17)
    assert repr(model).count("attention_sink_size=3, attention_sink_window_size=17") == 1
    assert "LlamaModel(\n" in repr(model)
    assert repr(remove_attention_sinks(model)) == before


def test_repr_of_a_multimodal_model():
    model = inject_attention_sinks(animal_of("gemma3").build(), 3, 4)
    assert "(language_model): Gemma3TextModel(\n" in repr(model)
    assert repr(model).count("attention_sink_size=3, attention_sink_window_size=4") == 1


# ---- classes that others change


def noticed(module_class, seen, with_signature):
    """The class's forward in a wrapper, as libraries patch it."""
    original = module_class.forward

    def forward(self, *args, **kwargs):
        seen.append(module_class)
        return original(self, *args, **kwargs)

    return mock.patch.object(module_class, "forward", wraps(original)(forward) if with_signature else forward)


@contextmanager
def new_process():
    """Nothing is known of any class yet."""
    with mock.patch.dict(_CLASSES, clear=True), mock.patch.dict(_PARAMETER_NAMES, clear=True):
        yield


@BOTH_WAYS
@pytest.mark.parametrize("with_signature", [True, False], ids=["signature", "args_and_kwargs"])
@pytest.mark.parametrize("module_class", CLASSES)
def test_a_patched_class(module_class, with_signature, injected):
    seen = []
    if injected == "before":
        model = streaming_llama()
    with noticed(module_class, seen, with_signature), new_process():
        if injected == "after":
            model = streaming_llama()
        assert_streams(model)
        assert seen
    seen.clear()
    assert_streams(model)
    assert not seen
    assert_plain(remove_attention_sinks(model))


def test_a_patched_class_changes_the_result():
    def doubled(self, hidden_states, *args, **kwargs):
        return original(self, 2 * hidden_states, *args, **kwargs)

    model, original, short = streaming_llama(), LlamaDecoderLayer.forward, IDS[None, : S + W]
    with mock.patch.object(LlamaDecoderLayer, "forward", doubled):
        expected = plain_logits(tiny_llama(), short)
        assert_close(plain_logits(model, short), expected)
    assert largest_difference(expected, plain_logits(model, short)) > TEETH


# ---- modules that others change


def accelerated(model):
    for module in model.modules():
        if not isinstance(module, torch.nn.ModuleList):
            accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())


STEPS = {
    "inject": lambda model: inject_attention_sinks(model, S, W),
    "remove": remove_attention_sinks,
    "hook": accelerated,
    "unhook": accelerate.hooks.remove_hook_from_submodules,
}
ORDERS = sorted(
    {
        order
        for order in itertools.permutations(["inject", "remove", "hook", "unhook", "inject", "remove"])
        if [step for step in order if step in ("inject", "remove")] == ["inject", "remove"] * 2
        and order.index("hook") < order.index("unhook")
    }
)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_hooks_of_accelerate_in_any_order(order):
    model, plain, streams = tiny_llama(), tiny_llama(), False
    for step in order:
        STEPS[step](model)
        if step in ("hook", "unhook"):
            STEPS[step](plain)
        else:
            streams = step == "inject"
        (assert_streams if streams else assert_plain)(model)
    for one, other in zip(plain.modules(), model.modules(), strict=True):
        assert type(one) is type(other) and one.__dict__.keys() >= other.__dict__.keys()


WRAPPERS = {
    "compiled": lambda forward: torch.compile(forward, backend="eager"),
    "wraps": lambda forward: wraps(forward)(lambda *args, **kwargs: forward(*args, **kwargs)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("module", ["", "model", "model.layers.0.self_attn", "model.rotary_emb"])
def test_a_forward_that_was_wrapped_while_the_model_streamed(module, wrapper):
    """It stays where it is, and runs what the model has: `model.forward = torch.compile(model.forward)`."""
    with torch.compiler.set_stance("force_eager"):
        model = streaming_llama()
        patched = model.get_submodule(module)
        patched.forward = forward = WRAPPERS[wrapper](patched.forward)
        assert_streams(model)
        for _ in range(2):
            assert_plain(remove_attention_sinks(model))
            assert patched.__dict__["forward"] is forward
            assert_streams(inject_attention_sinks(model, 1, 20), 1, 20)
            assert_streams(inject_attention_sinks(model, S, W))


@BOTH_WAYS
def test_a_parametrized_projection(injected):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    def doubled():
        model = tiny_llama()
        parametrize.register_parametrization(model.model.layers[0].self_attn.q_proj, "weight", Doubled())
        return model

    expected = naive_logits(doubled(), IDS, S, W)
    if injected == "after":
        model = inject_attention_sinks(doubled(), S, W)
    else:
        model = streaming_llama()
        parametrize.register_parametrization(model.model.layers[0].self_attn.q_proj, "weight", Doubled())
    assert_close(stream(model, IDS[None], CALLS)[0][0], expected)
    remove_attention_sinks(model)
    assert_close(plain_logits(model, IDS[None]), plain_logits(doubled(), IDS[None]))


class Same(torch.nn.Module):
    def forward(self, weight):
        return weight


def parametrized_attention(model):
    """Attention itself gets another class, as by fully_shard."""
    attention = model.model.layers[0].self_attn
    attention.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    parametrize.register_parametrization(attention, "scale", Same())
    return attention


def test_a_class_that_was_replaced_after_injection():
    model = streaming_llama()
    attention = parametrized_attention(model)
    assert_streams(model)
    for change in (remove_attention_sinks, lambda model: inject_attention_sinks(model, 1, 20)):
        with pytest.raises(RuntimeError, match="ParametrizedLlamaAttention .* has been replaced .* undo that first"):
            change(model)
        assert_streams(model)
    parametrize.remove_parametrizations(attention, "scale")
    assert_streams(model)
    assert_plain(remove_attention_sinks(model))


def test_a_class_that_was_replaced_before_injection():
    model = tiny_llama()
    parametrized_attention(model)
    refused(NotImplementedError, lambda: inject_attention_sinks(model, S, W), "ParametrizedLlamaAttention")
    assert_plain(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_whose_hooks_were_taken_off(copied):
    """accelerate leaves a bound forward on every instance."""
    model = streaming_llama()
    accelerated(model)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert isinstance(model.__dict__["forward"], types.MethodType)
    twin = copied(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert_streams(twin)
    assert_plain(remove_attention_sinks(twin))


@BOTH_WAYS
def test_gradient_checkpointing(injected):
    def gradients(model):
        model.zero_grad()
        model(IDS[None], labels=IDS[None]).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients(streaming_llama().train())
    model = tiny_llama().train()
    if injected == "after":
        model.gradient_checkpointing_enable()
    inject_attention_sinks(model, S, W)
    if injected == "before":
        model.gradient_checkpointing_enable()
    for one, other in zip(gradients(model), expected, strict=True):
        assert_close(one, other)
    for one, other in zip(gradients(remove_attention_sinks(model)), gradients(tiny_llama().train()), strict=True):
        assert_close(one, other)


def test_generation_while_a_method_of_it_is_patched():
    """Others may replace a method of the class; ours calls theirs."""
    model, seen, original = streaming_llama(), [], LlamaForCausalLM.prepare_inputs_for_generation

    def prepare(self, *args, **kwargs):
        seen.append(self)
        return original(self, *args, **kwargs)

    with mock.patch.object(LlamaForCausalLM, "prepare_inputs_for_generation", prepare):
        assert_generates(model)
    assert len(seen) == 20
