"""The library's check of itself: it passes on what streams, and sees every way in which a release can break it."""

import logging
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from unittest import mock

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP

from attention_sinks import (
    AttentionSinkKVCache,
    AutoModelForCausalLM,
    attention_sinks_injected,
    inject_attention_sinks,
    remove_attention_sinks,
    verification,
    verify_attention_sinks,
    versions,
)
from attention_sinks.architecture.setup import setup_of
from attention_sinks.versions import CACHE
from references.naive import naive_logits
from support.conformance import queries_off_by_one
from support.helpers import assert_close, everything_of, random_ids, refused, stream, tiny_config, tiny_llama
from support.pages import STREAMS, run_block
from support.zoo import MODELS, animal_of

pytestmark = pytest.mark.each_release


@pytest.fixture
def newer(monkeypatch):
    """The installed Transformers as one that was never tested."""
    monkeypatch.setattr(versions, "NEWEST_TRANSFORMERS", "5.16")
    monkeypatch.setattr(verification, "NEWEST_TRANSFORMERS", "5.16")


# ---- what a release may change, made up


def changed(module_class, change):
    """`module_class.forward`, whose named arguments go through `change(module, arguments)` first."""
    original = module_class.forward

    @wraps(original)
    def forward(self, *args, **kwargs):
        return original(self, *args, **change(self, kwargs))

    return mock.patch.object(module_class, "forward", forward)


class Reordered:
    """A cache that attention updates in another way than ours expects."""

    def __init__(self, cache):
        self.cache = cache

    def update(self, key_states, value_states, layer_idx, **kwargs):
        return self.cache.update(keys=key_states, values=value_states, layer=layer_idx)


def update_is_called_in_another_way():
    return changed(LlamaAttention, lambda self, given: {**given, CACHE: Reordered(given[CACHE])})


def layers_call_the_cache_another_name():
    def renamed(self, given):
        return {**{name: value for name, value in given.items() if name != CACHE}, "kv": given[CACHE]}

    return changed(LlamaDecoderLayer, renamed)


def masks_are_not_handed_on():
    return changed(LlamaForCausalLM, lambda self, given: {**given, "attention_mask": None})


def steps_stand_one_further_on():
    """Cosines and sines of the position after, where a call has one token."""

    def shifted(self, given):
        cos, sin = given["position_embeddings"]
        if cos.shape[1] > 1:
            return given
        pairs = torch.arange(0, cos.shape[-1], 2) / cos.shape[-1]
        angle = (10000.0**-pairs).repeat(2)
        turned = cos * angle.cos() - sin * angle.sin(), sin * angle.cos() + cos * angle.sin()
        return {**given, "position_embeddings": tuple(table.to(cos.dtype) for table in turned)}

    return changed(LlamaAttention, shifted)


def attention_ignores_the_cache():
    return changed(LlamaAttention, lambda self, given: {**given, CACHE: None})


def the_model_makes_a_cache_of_its_own():
    return changed(LlamaModel, lambda self, given: {**given, CACHE: None})


@contextmanager
def attention_has_a_mask_of_its_own():
    """Ours is not asked any more: plain attention over whatever it is handed."""

    def own(module, query, key, value, mask, **kwargs):
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, is_causal=query.shape[2] > 1, enable_gqa=True).transpose(1, 2), None

    with mock.patch.object(transformers.AttentionInterface, "get_interface", lambda *args: own):
        yield


BREAKS = [
    update_is_called_in_another_way,
    layers_call_the_cache_another_name,
    masks_are_not_handed_on,
    steps_stand_one_further_on,
    attention_ignores_the_cache,
    the_model_makes_a_cache_of_its_own,
    attention_has_a_mask_of_its_own,
    queries_off_by_one,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_what_is_broken_is_seen(broken, dtype):
    model = tiny_llama().to(dtype)
    before = everything_of(model)
    with broken():
        report = verify_attention_sinks(model)
    assert not report.agrees and "does not stream right" in str(report)
    assert report.wrong or report.error is not None
    assert everything_of(model) == before
    assert verify_attention_sinks(model).agrees


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_an_untested_release_that_breaks_it_is_refused(broken, newer):
    model = tiny_llama()
    before = everything_of(model)
    words = [transformers.__version__, "newer than 5.16", "llama", "pip install 'transformers==5.16.*'"]
    with broken():
        message = refused(NotImplementedError, lambda: inject_attention_sinks(model, 4, 12), *words)
    assert "differs by" in message or "raised" in message
    assert everything_of(model) == before
    with torch.no_grad():
        assert torch.equal(model(random_ids(1, 30)).logits, tiny_llama()(random_ids(1, 30)).logits)


def test_loading_is_refused_as_well(newer, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with masks_are_not_handed_on():
        refused(NotImplementedError, lambda: AutoModelForCausalLM.from_pretrained(tmp_path), "a padded text")
    assert AutoModelForCausalLM.from_pretrained(tmp_path, attention_sink_window_size=12)


# ---- what is right


@pytest.mark.parametrize("animal", MODELS)
def test_every_architecture_passes(animal):
    report = verify_attention_sinks(animal.build())
    assert report.agrees, report
    assert len(report.differences) == 6 and report.transformers == transformers.__version__


def test_an_untested_release_that_works_is_said_once(newer, caplog):
    logger = logging.getLogger("transformers")
    with mock.patch.object(logger, "propagate", True), caplog.at_level(logging.INFO):
        model = inject_attention_sinks(tiny_llama(), 4, 12)
        inject_attention_sinks(model, 2, 5)
        remove_attention_sinks(model)
        inject_attention_sinks(model, 4, 12)
    said = [record for record in caplog.records if "was checked on a few tokens" in record.getMessage()]
    assert len(said) == 1 and said[0].levelno == logging.INFO
    ids = random_ids(60)
    assert_close(stream(model, ids[None])[0][0], naive_logits(tiny_llama(), ids, 4, 12))


def test_nothing_runs_on_a_tested_release():
    if versions.is_newer_than_tested():
        pytest.skip(f"transformers {transformers.__version__} is newer than {versions.NEWEST_TRANSFORMERS}")
    with mock.patch.object(LlamaForCausalLM, "forward", side_effect=AssertionError("the model was called")):
        inject_attention_sinks(tiny_llama(), 4, 12)


@pytest.mark.parametrize("version, newer", [("5.17.0", False), ("5.24.3", False), ("5.25.0.dev0", True), ("6.0", True)])
def test_which_releases_are_newer(version, newer, monkeypatch):
    monkeypatch.setattr(versions.transformers, "__version__", version)
    monkeypatch.setattr(versions, "NEWEST_TRANSFORMERS", "5.24")
    assert versions.is_newer_than_tested() == newer


@contextmanager
def rounded_by_call():
    """Feed-forward layers whose inputs share one scale in each call, as when activations are quantised."""
    original = LlamaMLP.forward

    def forward(self, states):
        scale = states.abs().amax() / 4
        return original(self, (states / scale).round() * scale)

    with mock.patch.object(LlamaMLP, "forward", forward):
        yield


def quantised_llama():
    model = tiny_llama()
    model.is_quantized = True
    return model


def test_how_much_quantised_weights_differ_by_themselves_is_allowed():
    assert verify_attention_sinks(quantised_llama()).tolerance == pytest.approx(verification.ROUNDED, abs=1e-5)
    with rounded_by_call():
        report = verify_attention_sinks(quantised_llama())
        assert report.agrees and max(report.differences.values()) > verification.ROUNDED, report
        assert not verify_attention_sinks(tiny_llama()).agrees


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_quantised_weights_hide_no_broken_model(broken):
    with broken():
        assert not verify_attention_sinks(quantised_llama()).agrees


def test_it_takes_a_few_short_calls():
    model, calls = tiny_llama(), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    verify_attention_sinks(model)
    assert len(calls) <= 13 and all(rows <= 2 and columns <= 16 for rows, columns in calls)


def test_the_model_is_as_it_was():
    """Sinks, their settings, training mode and generation config."""
    for settings in (None, (4, 12), (1, 30, "dense")):
        model = tiny_llama(attention_dropout=0.5).train()
        model.model.layers[0].eval()
        model.generation_config.num_beams = 3
        if settings:
            inject_attention_sinks(model, *settings)
            cache = AttentionSinkKVCache(model)
            model(random_ids(1, 40), cache=cache)
        before = [module.training for module in model.modules()], model.generation_config
        random_state = torch.get_rng_state()
        assert verify_attention_sinks(model).agrees
        assert torch.equal(torch.get_rng_state(), random_state)
        assert ([module.training for module in model.modules()], model.generation_config) == before
        assert model.generation_config is before[1]
        if settings:
            kept = setup_of(model).settings
            assert (kept.sink_size, kept.window_size, kept.prefill) == (*settings, "streaming")[:3]
            model(random_ids(1, 5), cache=cache)
        else:
            assert "forward" not in model.model.__dict__


def test_an_interrupt_leaves_the_model_as_it_was():
    model = inject_attention_sinks(tiny_llama(), 4, 12)
    with (
        mock.patch.object(LlamaForCausalLM, "forward", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        verify_attention_sinks(model)
    ids = random_ids(60)
    assert_close(stream(model, ids[None])[0][0], naive_logits(tiny_llama(), ids, 4, 12))


def test_settings_that_the_model_does_not_allow():
    """A window that slides natively over fewer tokens than the check would use."""
    animal = animal_of("mistral", "sliding_attention")
    model = replace(animal, config={**animal.config, "sliding_window": 5}).build()
    assert verify_attention_sinks(model).agrees


def test_a_model_without_weights_is_not_checked(newer, messages):
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_config())
    inject_attention_sinks(model, 4, 12)
    assert messages.about("could not be checked", transformers.__version__)


def test_heads_and_base_models():
    for model_class in (LlamaModel, transformers.LlamaForSequenceClassification):
        report = verify_attention_sinks(tiny_llama(model_class=model_class, pad_token_id=0))
        assert report.agrees and len(report.differences) == 4


def test_what_is_no_model_or_cannot_stream():
    refused(TypeError, lambda: verify_attention_sinks(torch.nn.Linear(2, 2)), "Linear")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=8)
    refused(NotImplementedError, lambda: verify_attention_sinks(transformers.GPT2LMHeadModel(config)), "gpt2")


def test_the_guide_to_checking(capsys):
    run_block("verify_attention_sinks(model)", "unused", STREAMS, model=tiny_llama())
    assert "llama streams right with transformers" in capsys.readouterr().out


def test_inside_a_block(newer):
    model = tiny_llama()
    with attention_sinks_injected(model, 4, 12):
        assert verify_attention_sinks(model).agrees
        assert setup_of(model).settings.window_size == 12
    assert "forward" not in model.__dict__
