"""Models that other libraries have wrapped: accelerate's offloading hooks and PEFT's adapters."""

import re

import accelerate
import peft
import pytest
import torch
import transformers
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

import attention_sinks
from attention_sinks import inject_attention_sinks, remove_attention_sinks
from references.naive import naive_logits
from support.helpers import (
    TEETH,
    assert_close,
    assert_tokens_follow,
    largest_difference,
    random_ids,
    stream,
    tiny_llama,
)
from support.toy_tokenizers import number_tokenizer

S, W = 4, 12
IDS = random_ids(70)
CALLS = [20, 1, 1, 18, 30]

# The second layer's weights live on disk (or in memory) and come in for its forward only.
DEVICE_MAPS = {
    place: {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": place,
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": place,
    }  # fmt: skip
    for place in ("disk", "cpu")
}


def assert_streams(model, plain):
    expected = naive_logits(plain, IDS, S, W)
    logits, _ = stream(model, IDS[None], CALLS)
    assert_close(logits[0], expected)
    with torch.no_grad():
        assert_close(model(IDS[None], use_cache=False).logits[0], expected)
    sequence = model.generate(input_ids=IDS[None, :25], max_new_tokens=20, do_sample=False)[0]
    assert_tokens_follow(naive_logits(plain, sequence, S, W), sequence, 25)


# --- accelerate -------------------------------------------------------------------------------------------------------


def dispatched(model, place, folder):
    if place == "hooks_on_everything":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return accelerate.dispatch_model(
        model, DEVICE_MAPS[place], main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


@pytest.mark.parametrize("place", [*DEVICE_MAPS, "hooks_on_everything"])
@pytest.mark.parametrize("injected", ["before", "after"])
def test_offloaded_weights(tmp_path, place, injected):
    model = tiny_llama()
    if injected == "before":
        model = dispatched(inject_attention_sinks(model, S, W), place, tmp_path)
    else:
        model = inject_attention_sinks(dispatched(model, place, tmp_path), S, W)
    if place != "cpu":
        assert model.model.layers[1].self_attn.q_proj.weight.is_meta
    assert_streams(model, tiny_llama())


@pytest.mark.parametrize("place", [*DEVICE_MAPS, "hooks_on_everything"])
def test_removing_from_an_offloaded_model(tmp_path, place):
    model = inject_attention_sinks(dispatched(tiny_llama(), place, tmp_path), S, W)
    stream(model, IDS[None])
    remove_attention_sinks(model)
    with torch.no_grad():
        assert_close(model(IDS[None]).logits, tiny_llama()(IDS[None]).logits, 0)


def test_removing_what_was_injected_before_dispatch(tmp_path):
    model = dispatched(inject_attention_sinks(tiny_llama(), S, W), "disk", tmp_path)
    remove_attention_sinks(model)
    with torch.no_grad():
        assert_close(model(IDS[None]).logits, tiny_llama()(IDS[None]).logits, 0)


def test_taking_the_hooks_off_an_injected_model(tmp_path):
    model = inject_attention_sinks(dispatched(tiny_llama(), "cpu", tmp_path), S, W)
    accelerate.hooks.remove_hook_from_submodules(model)
    assert_streams(model, tiny_llama())


def test_from_pretrained_with_weights_on_disk(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        attention_sink_size=S,
        attention_sink_window_size=W,
        device_map=DEVICE_MAPS["disk"],
        offload_folder=str(tmp_path / "offload"),
    )
    assert model.model.layers[1].self_attn.q_proj.weight.is_meta
    assert_streams(model, tiny_llama())


def test_from_pretrained_with_automatic_placement(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    model = attention_sinks.AutoModelForCausalLM.from_pretrained(
        tmp_path, attention_sink_size=S, attention_sink_window_size=W, device_map="auto", dtype=torch.float32
    )
    assert_streams(model.to("cpu"), tiny_llama())


# --- PEFT -------------------------------------------------------------------------------------------------------------


def with_lora(model):
    """A LoRA wrapper whose weights are no longer at their initial zero."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return wrapped


def merged():
    return with_lora(tiny_llama()).merge_and_unload()


def test_the_adapter_matters():
    assert largest_difference(naive_logits(merged(), IDS, S, W), naive_logits(tiny_llama(), IDS, S, W)) > TEETH


def test_lora_around_an_injected_model():
    assert_streams(with_lora(inject_attention_sinks(tiny_llama(), S, W)), merged())


def test_injection_into_a_lora_model():
    model = with_lora(tiny_llama())
    assert inject_attention_sinks(model, S, W) is model
    assert_streams(model, merged())


def test_injection_into_the_base_of_a_lora_model():
    model = with_lora(tiny_llama())
    inject_attention_sinks(model.get_base_model(), S, W)
    assert_streams(model, merged())


def test_removal_from_a_lora_model():
    model = remove_attention_sinks(inject_attention_sinks(with_lora(tiny_llama()), S, W))
    with torch.no_grad():
        assert_close(model(IDS[None]).logits, with_lora(tiny_llama())(IDS[None]).logits, 0)


def test_a_cache_for_a_wrapped_model():
    model = inject_attention_sinks(with_lora(tiny_llama()), S, W)
    logits, _ = stream(model, IDS[None], CALLS, attention_sinks.AttentionSinkKVCache(model, 1, 9))
    assert_close(logits[0], naive_logits(merged(), IDS, 1, 9))


def test_prefix_tuning_brings_a_cache_of_its_own_and_is_refused():
    config = peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    model = peft.get_peft_model(inject_attention_sinks(tiny_llama(), S, W), config)
    with pytest.raises((TypeError, ValueError), match="cache"):
        model(input_ids=IDS[None])


def test_merging_the_adapter_of_an_injected_model():
    assert_streams(with_lora(inject_attention_sinks(tiny_llama(), S, W)).merge_and_unload(), merged())


def test_an_adapter_switched_off():
    model = inject_attention_sinks(with_lora(tiny_llama()), S, W)
    with model.disable_adapter():
        assert_streams(model, tiny_llama())


def test_an_adapter_added_by_transformers():
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"add_adapter of the installed Transformers wants peft>={MIN_PEFT_VERSION}, not {peft.__version__}")
    model = inject_attention_sinks(tiny_llama(), S, W)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=True))
    assert_streams(model, tiny_llama())  # a fresh adapter changes nothing


def test_training_an_adapter():
    model = with_lora(inject_attention_sinks(tiny_llama(), S, W)).train()
    model(input_ids=IDS[None], labels=IDS[None]).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_pipeline_keeps_streaming():
    """A pipeline around the injected model; the tokenizer is a toy whose words are the ids."""
    model = inject_attention_sinks(tiny_llama(), S, W)
    generator = transformers.pipeline("text-generation", model=model, tokenizer=number_tokenizer())
    text = " ".join(f"t{i}" for i in IDS[:20].tolist())
    answer = generator(text, max_new_tokens=30, do_sample=False, return_full_text=True)[0]["generated_text"]
    sequence = torch.tensor([int(number) for number in re.findall(r"t(\d+)", answer)])
    assert torch.equal(sequence[:20], IDS[:20]) and len(sequence) == 50
    assert_tokens_follow(naive_logits(tiny_llama(), sequence, S, W), sequence, 20)
