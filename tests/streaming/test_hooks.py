"""Forward hooks see a long call as plain Transformers shows it: whole."""

from functools import partial

import pytest
import torch
from transformers.utils import output_capturing

from attention_sinks import inject_attention_sinks
from attention_sinks.streaming import forward
from support.helpers import S, W, assert_close, plain_logits, random_ids, streaming_llama, tiny_llama
from support.zoo import animal_of

LENGTH, CHUNK = 100, 32


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(forward, "CHUNK_SIZE", CHUNK)


def noted(model, module):
    """A list to which every later call of this module adds its columns, without a hook."""
    lengths, own = [], module.forward

    def note(states, *args, **kwargs):
        lengths.append(states.shape[1])
        return own(states, *args, **kwargs)

    module.forward = note
    return lengths


def keep(kept, module, args, output):
    kept["output"] = output[0] if isinstance(output, tuple) else output


class Keeper:
    def __init__(self, kept):
        self.kept = kept

    def keep(self, module, args, output):
        keep(self.kept, module, args, output)


HOOKS = {
    "function": lambda kept: lambda module, args, output: keep(kept, module, args, output),
    "partial": lambda kept: partial(keep, kept),
    "method": lambda kept: Keeper(kept).keep,
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_hook_sees_all_columns(hook, use_cache):
    model, ids, kept = streaming_llama(), random_ids(2, LENGTH), {}
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True, use_cache=use_cache)
        handle = model.model.layers[0].register_forward_hook(HOOKS[hook](kept))
        logits = model(ids, use_cache=use_cache).logits
    assert_close(logits, expected.logits)
    assert_close(kept["output"], expected.hidden_states[1])
    handle.remove()
    lengths = noted(model, model.model.norm)
    plain_logits(model, ids, use_cache=use_cache)
    assert lengths == [32, 32, 32, 4]


def test_a_pre_hook_steers_all_columns():
    """What a pre-hook adds to each column arrives there, as a call of few columns shows."""
    ids, steering = random_ids(1, LENGTH), torch.randn(1, LENGTH, 64, generator=torch.Generator().manual_seed(0))
    model = streaming_llama()
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + steering, *args[1:]))
    plain = inject_attention_sinks(tiny_llama(), S, W, "dense")
    short = S + W + 1
    plain.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] + steering[:, :short], *args[1:]))
    assert_close(plain_logits(model, ids)[:, :short], plain_logits(plain, ids[:, :short]))


def test_hooks_around_the_call_and_those_of_libraries_leave_it_in_chunks():
    model, ids = streaming_llama(), random_ids(1, LENGTH)
    plain_logits(model, ids[:, :3], output_hidden_states=True)  # Transformers puts hooks on the layers, for good
    assert any(hook.__module__ == output_capturing.__name__ for hook in model.model.layers[0]._forward_hooks.values())
    model.model.register_forward_hook(lambda module, args, output: None)
    model.register_forward_pre_hook(lambda module, args: None)
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    lengths = noted(model, model.model.norm)
    plain_logits(model, ids)
    assert lengths == [32, 32, 32, 4]


def test_a_call_that_must_be_cut_warns_once(messages):
    """Jamba's states start anew in every call of several tokens, so there is no other way than one by one."""
    model = inject_attention_sinks(animal_of("jamba").build(), S, W)
    model.base_model.layers[0].register_forward_hook(lambda module, args, output: None)
    ids = random_ids(1, 12)
    cache = model(ids[:, :4], use_cache=True).cache
    with torch.no_grad():
        model(ids[:, 4:6], cache=cache)
        model(ids[:, 6:], cache=cache)
    assert len(messages.about("forward hook on layers.0", "one token")) == 1
