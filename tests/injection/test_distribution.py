"""Models larger than one device: weights on disk or handed in layer by layer, several processes, switched adapters."""

import os
import subprocess
import sys

import accelerate
import peft
import pytest
import torch
from transformers import GenerationConfig

from attention_sinks import AttentionSinkKVCache, AutoModelForCausalLM, StreamingChat, inject_attention_sinks
from references.naive import naive_logits
from support.helpers import TEETH, assert_close, largest_difference, random_ids, stream, tiny_llama
from support.paths import ROOT, TESTS
from support.tensor_parallel import CALLS, S, W, everything
from support.toy_tokenizers import save_chat_model, word_tokenizer

ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


SHORT = GenerationConfig(max_new_tokens=20)


def assert_same_results(actual, expected):
    assert actual.keys() == expected.keys()
    for name in ("logits", "logits_of_loaded"):
        assert_close(actual[name], expected[name])
    for name in expected.keys() - {"logits", "logits_of_loaded", "local_heads"}:
        assert actual[name] == expected[name] if name == "said" else torch.equal(actual[name], expected[name]), name


@pytest.fixture(params=[2, 4], ids=["two_kv_heads", "four_kv_heads"])
def folder(request, tmp_path):
    return save_chat_model(tmp_path / "model", num_key_value_heads=request.param)


def load(folder, **options):
    sizes = {"attention_sink_size": S, "attention_sink_window_size": W}
    return AutoModelForCausalLM.from_pretrained(folder, **sizes, **options)


def test_the_results_compared_here_are_right(folder):
    model = load(folder)
    results = everything(model, word_tokenizer())
    plain = tiny_llama(num_key_value_heads=model.config.num_key_value_heads)
    expected = [naive_logits(plain, ids, S, W) for ids in random_ids(2, sum(CALLS))]
    assert_close(results["logits"], torch.stack(expected))
    assert all(results["said"]) and results["generated"].shape == (2, 45)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this PyTorch has no gloo, with which processes on a CPU talk",
)
def test_two_processes_share_a_model(folder):
    output = folder / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [*command, TESTS / "support" / "tensor_parallel.py", folder, output],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results, alone = torch.load(output, weights_only=True), everything(load(folder), word_tokenizer())
    assert_same_results(results, alone)
    assert results["local_heads"] * 2 == alone["local_heads"]


def test_weights_on_disk(folder, tmp_path):
    model = load(folder, device_map=ON_DISK, offload_folder=str(tmp_path / "offload"))
    assert model.model.layers[1].self_attn.q_proj.weight.is_meta
    assert_same_results(everything(model, word_tokenizer()), everything(load(folder), word_tokenizer()))


def test_no_weight_stays_on_the_device(folder):
    """accelerate brings every module's weights in for its forward only; the model's own device is none."""
    model = accelerate.cpu_offload(load(folder), execution_device=torch.device("cpu"))
    assert model.device.type == "meta"
    assert_same_results(everything(model, word_tokenizer()), everything(load(folder), word_tokenizer()))


def test_streams_of_two_adapters_take_turns():
    """A stream belongs to the weights that read it; adapters may be switched between calls."""

    def with_adapters(model, *names):
        for name in names:
            config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            if isinstance(model, peft.PeftModel):
                model.add_adapter(name, config)
            else:
                model = peft.get_peft_model(model, config, adapter_name=name)
            generator = torch.Generator().manual_seed(len(name))
            for key, parameter in model.named_parameters():
                if f".{name}." in key:
                    parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    ids, cuts = random_ids(1, 60), [0, 20, 21, 22, 45, 60]
    model = inject_attention_sinks(with_adapters(tiny_llama(), "one", "other"), S, W)
    caches, logits = {name: AttentionSinkKVCache(model) for name in ("one", "other")}, {"one": [], "other": []}
    for start, stop in zip(cuts, cuts[1:], strict=False):
        for name, cache in caches.items():
            model.set_adapter(name)
            logits[name].append(stream(model, ids[:, start:stop], cache=cache)[0])
    expected = {
        name: naive_logits(with_adapters(tiny_llama(), name).merge_and_unload(), ids[0], S, W) for name in caches
    }
    for name in caches:
        model.set_adapter(name)
        alone = inject_attention_sinks(with_adapters(tiny_llama(), name).merge_and_unload(), S, W)
        said = [
            "".join(StreamingChat(each, word_tokenizer(), generation_config=SHORT).send("w1 w2"))
            for each in (model, alone)
        ]
        assert said[0] == said[1]
        assert_close(torch.cat(logits[name], dim=1)[0], expected[name])
    assert largest_difference(expected["one"], expected["other"]) > TEETH
