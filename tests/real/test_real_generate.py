"""A pretrained model generates past a small window: greedy, beams, assisted; a rollback and a saved stream.

The model's folder is $ATTENTION_SINKS_MODEL, or models/SmolLM2-135M-Instruct beside this repository's README.
"""

import pytest
import torch
import transformers

from attention_sinks import AttentionSinkKVCache, AutoModelForCausalLM, inject_attention_sinks
from support.helpers import noted_crops, stream
from support.real_model import FOLDER, NEEDS_THE_MODEL

pytestmark = NEEDS_THE_MODEL

S, W = 4, 44
NEW = 64


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attention_sink_size=S, attention_sink_window_size=W
    )


@pytest.fixture(scope="module")
def prompt():
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    text = "The river rose in the night, and in the morning the whole village stood at the water and waited. The river "
    return tokenizer(text * 3, return_tensors="pt").input_ids


def generate(model, ids, **options):
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **{**settings, **options})


@pytest.fixture(scope="module")
def greedy(model, prompt):
    return generate(model, prompt)


def assert_likeliest(model, sequences, prompt_length, tolerance=1e-3):
    """Every token has the highest logit when the whole text is streamed again in one call."""
    logits, _ = stream(model, sequences[:, :-1])
    steps = logits[:, prompt_length - 1 :]
    chosen = steps.gather(-1, sequences[:, prompt_length:, None])[..., 0]
    assert (steps.amax(-1) - chosen).max() <= tolerance


def test_greedy_past_the_window(model, prompt, greedy):
    assert prompt.shape[1] > S + W + 1
    assert_likeliest(model, greedy, prompt.shape[1])


def test_prompt_lookup_is_greedy(model, prompt, greedy):
    assert torch.equal(generate(model, prompt, prompt_lookup_num_tokens=8), greedy)


def test_an_assistant_is_greedy(model, prompt, greedy):
    """The same checkpoint with a smaller window drafts: often right, not always."""
    draft = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attention_sink_size=2, attention_sink_window_size=12
    )
    with pytest.MonkeyPatch.context() as patch:
        crops = noted_crops(patch)
        assert torch.equal(generate(model, prompt, assistant_model=draft), greedy)
    taken = [columns for _, columns in crops]
    assert 0 in taken and max(taken) > 1


def test_beams_are_those_without_a_cache(model, prompt, greedy):
    beams = generate(model, prompt, num_beams=3, max_new_tokens=12)
    assert torch.equal(beams, generate(model, prompt, num_beams=3, max_new_tokens=12, use_cache=False))


def test_a_turn_taken_back_and_saved(model, prompt, greedy, tmp_path):
    outputs = generate(model, prompt, max_new_tokens=NEW // 2, return_dict_in_generate=True)
    cache = outputs.cache
    cache.activate_past_recording()
    stream(model, prompt[:, :60], [1, 1, 58], cache)
    cache.crop(-60)
    cache.save(tmp_path / "stream")
    other = inject_attention_sinks(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32), S, W)
    loaded = AttentionSinkKVCache.load(tmp_path / "stream", other)
    rest = NEW - NEW // 2
    for one, its_model in ((loaded, other), (cache, model)):
        made = generate(its_model, outputs.sequences, cache=one, max_new_tokens=rest)
        assert_likeliest(model, made, prompt.shape[1])
        assert torch.equal(made, greedy)
