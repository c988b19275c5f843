"""Ctrl-C at any line of this package while attention sinks go into a model, change or leave it.

The model is then as it was, or as it would have been without Ctrl-C. Its modules are compared with those of the model
in these states, so that the few states need be run only once.
"""

import re
import types
from pathlib import Path
from unittest import mock

import accelerate
import peft
import pytest
import torch
from transformers import PreTrainedConfig

from attention_sinks import attention_sinks_injected, inject_attention_sinks, patches, remove_attention_sinks
from attention_sinks.architecture.streaming_class import _CLASSES, plain_class
from attention_sinks.patches import plain_config
from attention_sinks.patching import InstalledPatches
from attention_sinks.versions import CACHE
from support.faults import LOCKED, PACKAGE, interrupted
from support.helpers import TEETH, assert_close, largest_difference, random_ids, tiny_llama
from support.zoo import animal_of

IDS = random_ids(1, 30)
OLD, NEW = (1, 5), (0, 9)


def described(value):
    """What is the same for a value and for one that was made in the same way."""
    if isinstance(value, types.MethodType):
        return value.__func__.__code__, id(value.__self__)
    if isinstance(value, PreTrainedConfig):
        return value._attn_implementation_internal, id(plain_config(value))
    if isinstance(value, InstalledPatches):
        patched = {(type(patch).__name__, id(patch.module)) for patch in value.patches}
        return value.setup.settings, patched
    return dict(value) if isinstance(value, dict) else id(value)


def state_of(model):
    """The class and the attributes of every module."""

    def class_of(module):
        return plain_class(module), getattr(type(module), "_streaming_members", ())

    return [
        (class_of(module), {name: described(value) for name, value in vars(module).items()})
        for module in model.modules()
    ]


def llama():
    return tiny_llama(num_hidden_layers=1)


def llama_with_hooks():
    model = llama()
    for module in model.modules():
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    return model


def llama_hooked_while_it_streamed():
    """Without sinks: put in, hooked by accelerate, and taken out."""
    model = inject_attention_sinks(llama(), *OLD)
    for module in model.modules():
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    return remove_attention_sinks(model)


def llama_with_forwards_of_its_own():
    """Instances with a forward, which calls what the class had when it was put there."""
    model = llama()
    for module in (model, model.model, model.model.layers[0].self_attn, model.model.rotary_emb):
        module.forward = (lambda forward: lambda *args, **kwargs: forward(*args, **kwargs))(module.forward)
    return model


def llama_in_lora():
    return peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()


MODELS = {
    "llama": llama,
    "hooks": llama_with_hooks,
    "hooks_put_on_while_it_streamed": llama_hooked_while_it_streamed,
    "forwards_of_its_own": llama_with_forwards_of_its_own,
    "lora": llama_in_lora,
    "written_out": lambda: animal_of("falcon", num_hidden_layers=1).build(),
    "extra_patches": lambda: animal_of("recurrent_gemma", num_hidden_layers=2).build(),
    "configs_per_layer": lambda: animal_of("gemma4_text").build(),
    "wrapper": lambda: animal_of("gemma3", num_hidden_layers=1, layer_types=["full_attention"]).build(),
}


def inject_old(model):
    inject_attention_sinks(model, *OLD)


def inject_new(model):
    inject_attention_sinks(model, *NEW)


def block(model):
    with attention_sinks_injected(model, *NEW):
        pass


# What is interrupted, what brings the model to where it begins, and what the model may also be like afterwards.
ACTIONS = {
    "inject": (inject_new, remove_attention_sinks, inject_new),
    "inject_again": (inject_new, inject_old, inject_new),
    "remove": (remove_attention_sinks, inject_old, remove_attention_sinks),
    "block": (block, remove_attention_sinks, inject_new),
    "block_in_an_injected_model": (block, inject_old, inject_new),
}
CASES = [
    pytest.param(name, action, id=f"{action}-{name}")
    for name in MODELS
    for action in ACTIONS
    if name == "llama" or action in ("inject", "remove")
]
EVERY_LINE, SOME_LINES = 1, 17
STEP = {"configs_per_layer": SOME_LINES}  # with many modules


@pytest.mark.parametrize("name, action", CASES)
def test_ctrl_c_at_any_line(name, action):
    model = MODELS[name]()
    action, begin, end = ACTIONS[action]
    plain = state_of(model)
    inject_new(model)
    with_sinks = state_of(model)
    allowed = []
    for get_there in (end, begin):
        get_there(model)
        allowed.append(state_of(model))
    line, reached = 1, []
    while interrupted(lambda: action(model), line):
        state = state_of(model)
        assert state in allowed, f"interrupted at line {line}"
        if state not in reached:
            reached.append(state)
            inject_new(model)
            assert state_of(model) == with_sinks
            remove_attention_sinks(model)
            assert state_of(model) == plain
        if state_of(model) != allowed[1]:
            begin(model)
        line += STEP.get(name, EVERY_LINE)
    assert line > 200 and allowed[1] in reached


@pytest.mark.parametrize("name", MODELS)
def test_the_states_that_are_compared_are_right(name):
    """What the model gives before, with sinks, with others and after."""

    def logits():
        with torch.no_grad():
            return model(input_ids=IDS).logits

    model = MODELS[name]()
    expected = logits()
    found = []
    for settings in (OLD, NEW):
        inject_attention_sinks(model, *settings)
        assert largest_difference(logits(), expected) > TEETH
        found.append(logits())
        with torch.no_grad():
            calls = [model(input_ids=IDS[:, :12], use_cache=True)]
            cache = calls[0][CACHE]
            calls += [model(input_ids=IDS[:, i : i + 1], cache=cache, use_cache=True) for i in range(12, 30)]
        assert_close(torch.cat([call.logits for call in calls], dim=1), found[-1])
    assert largest_difference(*found) > TEETH
    remove_attention_sinks(model)
    assert_close(logits(), expected, 0)


def test_ctrl_c_while_the_classes_are_made():
    """As at the first injection of a process."""
    model = llama()
    plain = state_of(model)
    inject_new(model)
    allowed = [plain, state_of(model)]
    line, done = 1, False
    while not done:
        remove_attention_sinks(model)
        with mock.patch.dict(_CLASSES, clear=True):
            done = not interrupted(lambda: inject_new(model), line)
            assert state_of(model) in allowed, f"interrupted at line {line}"
            remove_attention_sinks(model)
            assert state_of(model) == plain
        line += 1


@pytest.mark.parametrize("mend", [inject_new, remove_attention_sinks])
@pytest.mark.parametrize("begin, action", [(remove_attention_sinks, inject_old), (inject_old, remove_attention_sinks)])
def test_a_second_ctrl_c_is_mended_by_the_next_call(begin, action, mend):
    """The first is answered by going back, which the second one interrupts."""
    model = llama()
    plain = state_of(model)
    inject_new(model)
    with_sinks = state_of(model)
    for classes_set in range(5):
        begin(model)
        with (
            mock.patch.object(patches, "_set_class", interrupted_after(classes_set)),
            pytest.raises(KeyboardInterrupt),
        ):
            action(model)
        mend(model)
        assert state_of(model) == (with_sinks if mend is inject_new else plain)
        remove_attention_sinks(model)
        assert state_of(model) == plain


def interrupted_after(classes_set):
    """`patches._set_class` that works so many times, and then is interrupted again and again."""
    once_more, real = iter(range(classes_set)), patches._set_class

    def set_class(module, module_class):
        if next(once_more, None) is None:
            raise KeyboardInterrupt
        real(module, module_class)

    return set_class


def test_ctrl_c_spares_the_end_of_every_lock():
    """A lock that these tests do not know by its name would stay held, and its next user would wait for ever."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(PACKAGE).rglob("*.py"))]
    locks = {
        name for source in sources for name in re.findall(r"([\w.]+)\b[^=\n]* = (?:threading\.)?R?Lock\(\)", source)
    }
    assert {"ENCODING_LOCK", "self._lock", "self._mutex"} <= locks
    assert all(LOCKED.fullmatch(f"with {name}:") for name in locks)
