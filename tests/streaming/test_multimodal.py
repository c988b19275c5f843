"""Models for text and images whose text decoder has positions of several planes: they stream text."""

import pytest
import torch
import transformers
from transformers import AutoConfig

from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, supported_model_types
from references.replay import replay_logits
from support.contract import left_padded, stream_rows
from support.helpers import (
    assert_close,
    assert_same_state,
    assert_tokens_follow,
    cut,
    random_ids,
    refused,
    state_of,
    stream,
)
from support.zoo import animal_of, config_of_type

CLASSES = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 64}
IDS = random_ids(60)


@pytest.fixture(params=sorted(set(CLASSES) & set(supported_model_types())))
def pair(request):
    """A model with a tower for images, sinks injected, and the plain language model inside."""
    animal = animal_of(request.param)
    text = config_of_type(animal.text, {**animal.config, "eos_token_id": 1})
    config = AutoConfig.for_model(animal.model_type, text_config=text.to_dict(), vision_config=VISION)
    plain, model = animal.build(), getattr(transformers, CLASSES[animal.model_type])(config).float().eval()
    model.model.language_model.load_state_dict(plain.model.state_dict())
    model.lm_head.load_state_dict(plain.lm_head.state_dict())
    return inject_attention_sinks(model, 4, 12), plain


def test_text_streams_before_and_after_generate(pair):
    """Transformers' generate leaves positions on the model."""
    model, plain = pair
    right = replay_logits(plain, IDS, 4, 12)
    for lengths in ([1], [60], [7]):
        assert_close(stream(model, IDS[None], cut(60, lengths))[0][0], right)
        row = model.generate(IDS[None, :5], attention_mask=torch.ones(1, 5), max_new_tokens=25, do_sample=False)[0]
        assert_tokens_follow(replay_logits(plain, row, 4, 12), row, prompt_length=5)


def test_a_padded_row_gives_what_it_gives_alone(pair):
    model, plain = pair
    rows = [random_ids(40, seed=1), random_ids(25, seed=2)]
    logits, _ = stream_rows(model, rows, [left_padded([30, 15]), left_padded([9, 9]), left_padded([1, 1])])
    for row, row_logits in zip(rows, logits, strict=True):
        assert_close(row_logits, replay_logits(plain, row, 4, 12))


def test_generate_again_and_again(pair):
    model, plain = pair
    cache, history = AttentionSinkKVCache(model), IDS[None, :0]
    for number in range(3):
        history = torch.cat([history, random_ids(1, 9, seed=number)], dim=1)
        real, length = torch.ones_like(history), history.shape[1]
        history = model.generate(
            history, attention_mask=real, cache=cache, max_new_tokens=9, min_new_tokens=9, do_sample=False
        )
        assert history.shape[1] == length + 9
    right = replay_logits(plain, history[0], 4, 12)
    right[:, 1] = -torch.inf  # the end token was not allowed
    assert_tokens_follow(right, history[0], prompt_length=length)


def test_images_are_refused(pair):
    model, _ = pair
    refused(NotImplementedError, lambda: model(IDS[None], pixel_values=torch.zeros(4, 16)), "pixel_values")


@pytest.mark.parametrize("media", ["image_pixel_values", "audio_input_features"])
def test_images_and_sound_are_refused_where_the_decoder_itself_takes_them(media):
    """Phi-4's decoder has no model around it that could refuse them."""
    model = inject_attention_sinks(animal_of("phi4_multimodal").build(), 4, 12)
    _, cache = stream(model, IDS[None, :30])
    before = state_of(cache)
    call = {"cache": cache, media: torch.zeros(1, 2, 3, 28, 28)}
    refused(NotImplementedError, lambda: model(IDS[None, :5], **call), media, "streams text only")
    assert_same_state(cache, before)
