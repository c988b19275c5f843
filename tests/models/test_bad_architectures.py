"""What one architecture cannot do: refused with argument, value and cure, and everything is as it was before."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import attention_sinks
from attention_sinks import AttentionSinkKVCache, inject_attention_sinks, supported_model_types
from attention_sinks.architecture.setup import setup_of
from attention_sinks.models.registry import architecture_of
from attention_sinks.versions import GPTJ_IS_HANDED_POSITION_EMBEDDINGS
from references.replay import replay_logits
from support.helpers import assert_close, assert_same_state, cut, everything_of, random_ids, refused, state_of, stream
from support.zoo import ZOO, animal_of, config_of

S, W = 4, 12
SINKS = {"attention_sink_size": S, "attention_sink_window_size": W}
IDS = random_ids(60)


def refused_by_injection(kind, model, *words, **settings):
    """The model, plain before, is plain after."""
    before = everything_of(model)
    message = refused(kind, lambda: inject_attention_sinks(model, **settings), *words)
    assert everything_of(model) == before
    return message


# --- finite tables ----------------------------------------------------------------------------------------------------

TABLES = {"gptj": "max_position_embeddings", "mpt": "max_seq_len"}


@pytest.mark.parametrize("model_type, table", TABLES.items())
def test_more_tokens_than_the_table_has_positions(model_type, table):
    animal = animal_of(model_type, **{table: 64})
    settings = {"attention_sink_size": 4, "attention_sink_window_size": 60}
    words = [*settings, 4, 60, 65, f"{table}=64", "at most 59"]
    refused_by_injection(ValueError, animal.build(), *words, **settings)
    config = animal.build().config
    automatic = attention_sinks.AutoModelForCausalLM
    refused(ValueError, lambda: automatic.from_config(config, **settings), *words)


@pytest.mark.parametrize("model_type, table", TABLES.items())
def test_the_whole_table_can_be_used(model_type, table):
    animal = animal_of(model_type, **{table: 64})
    model, ids = inject_attention_sinks(animal.build(), 4, 59), random_ids(150)
    for calls in ([1], [150]):
        assert_close(stream(model, ids[None], cut(150, calls))[0][0], replay_logits(animal.build(), ids, 4, 59))


@pytest.mark.parametrize("model_type, table", TABLES.items())
def test_a_refused_size_leaves_an_injected_model_as_it_is(model_type, table):
    animal = animal_of(model_type, **{table: 64})
    model = inject_attention_sinks(animal.build(), S, W)
    refused(ValueError, lambda: inject_attention_sinks(model, 4, 60), "attention_sink_window_size", f"{table}=64")
    refused(ValueError, lambda: AttentionSinkKVCache(model, 30, 34), "attention_sink_size=30", "at most 33")
    assert_close(stream(model, IDS[None])[0][0], replay_logits(animal.build(), IDS, S, W))


@pytest.mark.parametrize("model_type, table", [("doge", "keep_window_size"), ("mpt", "max_seq_len")])
def test_a_dense_call_sees_no_more_than_the_model_can_have(model_type, table):
    animal = animal_of(model_type, **{table: 64})
    model = inject_attention_sinks(animal.build(), 2, 4, "dense")
    with torch.no_grad():
        model(random_ids(1, 64))
    words = ["attention_sink_prefill='dense'", "see 65 tokens", f"{table}=64", "make shorter calls"]
    refused(ValueError, lambda: model(random_ids(1, 65)), *words)
    _, cache = stream(model, IDS[None, :30], [10] * 3)
    before = state_of(cache)
    refused(ValueError, lambda: model(random_ids(1, 59), cache=cache), *words)
    assert_same_state(cache, before)
    with torch.no_grad():
        model(random_ids(1, 58), cache=cache)


# --- configurations ---------------------------------------------------------------------------------------------------

MPT_CONFIGS = [("qk_ln", True), ("prefix_lm", True), ("attn_uses_sequence_id", True), ("alibi", False)]


@pytest.mark.parametrize("name, value", MPT_CONFIGS)
def test_what_transformers_mpt_does_not_compute(tmp_path, name, value):
    words = ["mpt", f"attn_config.{name}={value}"]
    model = animal_of("mpt").build()
    setattr(model.config.attn_config, name, value)
    refused_by_injection(NotImplementedError, model, *words)
    model.config.to_json_file(tmp_path / "config.json")  # and no weights: it is refused before they are looked for
    refused(NotImplementedError, lambda: attention_sinks.AutoModelForCausalLM.from_pretrained(tmp_path), *words)
    refused(NotImplementedError, lambda: attention_sinks.MptForCausalLM(model.config), *words)


def test_zaya_with_a_bias_that_padding_would_get_too():
    model = animal_of("zaya", attention_bias=True).build()
    refused_by_injection(NotImplementedError, model, "zaya", "attention_bias=True", "padding")


ALIBI_FALCON = animal_of("falcon", "alibi, odd heads")
EAGER = ["falcon", "alibi=True", "attn_implementation='eager'", "use attn_implementation='sdpa'"]


def test_falcon_with_alibi_under_eager_attention(tmp_path):
    """Transformers itself adds the bias twice there."""
    refused_by_injection(NotImplementedError, ALIBI_FALCON.build("eager"), *EAGER)
    ALIBI_FALCON.build().save_pretrained(tmp_path)
    for loader in (attention_sinks.AutoModelForCausalLM, attention_sinks.FalconForCausalLM):
        refused(
            NotImplementedError, lambda kind=loader: kind.from_pretrained(tmp_path, attn_implementation="eager"), *EAGER
        )


@pytest.mark.parametrize("implementation", ["eager", "flash_attention_2"])
def test_falcon_with_alibi_set_to_another_attention_later(implementation):
    model = inject_attention_sinks(ALIBI_FALCON.build(), S, W)
    _, cache = stream(model, IDS[None, :30])
    before = state_of(cache)
    model.config._attn_implementation = implementation
    words = ["falcon", "use attn_implementation='sdpa'"]
    refused(NotImplementedError, lambda: model(IDS[None, 30:], cache=cache), *words)
    refused(NotImplementedError, lambda: model.generate(IDS[None], max_new_tokens=2), *words)
    assert_same_state(cache, before)
    model.config._attn_implementation = "sdpa"
    logits, _ = stream(model, IDS[None, 30:], cache=cache)
    assert_close(logits[0], replay_logits(ALIBI_FALCON.build(), IDS, S, W)[30:])


@pytest.mark.parametrize("model_type, instead", [("falcon", "sdpa"), ("gptj", "eager")])
def test_flash_attention_in_a_class_of_its_own(model_type, instead):
    if model_type == "gptj" and GPTJ_IS_HANDED_POSITION_EMBEDDINGS:
        pytest.skip("since Transformers 5.24 GPT-J has one class of attention, which streams with every implementation")
    model = animal_of(model_type).build()
    model.config._attn_implementation = "flash_attention_2"
    refused_by_injection(
        NotImplementedError, model, model_type, "flash_attention_2", f"use attn_implementation='{instead}'"
    )


@pytest.mark.parametrize("model_type", ["bloom", "mpt"])
def test_steps_with_a_bias_do_not_run_flash_kernels(model_type):
    """These kernels take no bias, so a step attends as it does under SDPA, also where rows differ."""
    model = inject_attention_sinks(animal_of(model_type).build(), S, W)
    rows = random_ids(2, 30).clamp(min=1)
    mask = torch.ones_like(rows)
    mask[1, :20] = 0
    found = []
    for implementation in ("sdpa", "flash_attention_2"):
        model.config._attn_implementation = implementation
        cache = AttentionSinkKVCache(model)
        with torch.no_grad():
            model(rows[:, :25], attention_mask=mask[:, :25], cache=cache)
            found.append(torch.cat([model(rows[:, t : t + 1], cache=cache).logits for t in range(25, 30)]))
    assert_close(*found)


def test_falcon_without_alibi_takes_eager_attention():
    animal = animal_of("falcon", "rope halves")
    model = inject_attention_sinks(animal.build("eager"), S, W)
    assert_close(stream(model, IDS[None])[0][0], replay_logits(animal.build(), IDS, S, W))


# --- hybrids without attention ----------------------------------------------------------------------------------------


def begins_with_states(animal):
    """Whether the first layer of a tiny model has no attention."""
    config = config_of(animal)
    return not architecture_of(config).kinds(config.get_text_config(decoder=True))[0].attends


STATES_FIRST = sorted({animal.model_type for animal in ZOO if begins_with_states(animal)})


def config_without_attention(model_type):
    """The config of the hybrid, of which only the first layer is left."""
    animal = animal_of(model_type)
    lists = {name: animal.config[name][:1] for name in ("layer_types", "layers_block_type") if name in animal.config}
    others = {name: [] for name in ("attn_layer_indices", "ple_layer_ids") if name in animal.config}
    return config_of(animal_of(model_type, num_hidden_layers=1, **lists, **others))


def test_the_hybrids_are_found():
    assert {"bamba", "jamba", "lfm2", "nemotron_h", "qwen3_5", "recurrent_gemma", "zamba2"} <= {*STATES_FIRST}


# Transformers itself refuses such a config of OLMo-hybrid.
@pytest.mark.parametrize("model_type", [name for name in STATES_FIRST if name != "olmo_hybrid"])
def test_a_hybrid_without_an_attention_layer(model_type):
    config = config_without_attention(model_type)
    words = [config.get_text_config(decoder=True).model_type, "num_hidden_layers=1", "no layer", "attention"]
    refused(NotImplementedError, lambda: attention_sinks.AutoModelForCausalLM.from_config(config), *words)


@pytest.mark.parametrize("model_type", ["bamba", "lfm2", "nemotron_h", "recurrent_gemma"])
def test_a_loaded_hybrid_without_an_attention_layer(model_type):
    model = AutoModelForCausalLM.from_config(config_without_attention(model_type))
    refused_by_injection(NotImplementedError, model, model_type, "num_hidden_layers=1", "no layer", "attention")


# --- models that slide natively in all layers -------------------------------------------------------------------------


def sliding_mistral(native):
    return animal_of("mistral", "sliding_attention", sliding_window=native)


def test_a_window_beyond_the_native_one_is_cut_with_one_warning(messages):
    animal, native = sliding_mistral(23), 23
    model = inject_attention_sinks(animal.build(), 4, 30)
    for _ in range(3):
        logits, cache = stream(model, IDS[None], [20, 1, 39])
        assert cache.tokens_cached.tolist() == [native - 1]
        assert_close(logits[0], replay_logits(animal.build(), IDS, 4, 18))
    assert len(messages.about("attention_sink_window_size=30", "cut to 18", "sliding_window")) == 1, messages.texts
    assert setup_of(model).settings.window_size == 18


def test_a_cache_of_its_own_sizes_is_cut_too(messages):
    model = inject_attention_sinks(sliding_mistral(22).build(), S, W)
    cache = AttentionSinkKVCache(model, 2, 31)
    logits, _ = stream(model, IDS[None], cache=cache)
    assert_close(logits[0], replay_logits(sliding_mistral(22).build(), IDS, 2, 19))
    assert len(messages.about("attention_sink_window_size=31", "cut to 19")) == 1, messages.texts


def test_a_window_that_fits_is_left_alone(messages):
    model = inject_attention_sinks(sliding_mistral(21).build(), 4, 16)
    assert setup_of(model).settings.window_size == 16
    assert not messages.about("is cut to")


@pytest.mark.parametrize("sinks", [20, 24, 25, 100])
def test_sinks_that_leave_no_window(sinks):
    animal = sliding_mistral(21)
    words = [f"attention_sink_size={sinks}", 21, "sliding_window", "at most 19"]
    refused_by_injection(ValueError, animal.build(), *words, attention_sink_size=sinks, attention_sink_window_size=1)
    model = inject_attention_sinks(animal.build(), S, W)
    refused(ValueError, lambda: AttentionSinkKVCache(model, sinks, 1), *words)
    assert_close(stream(model, IDS[None])[0][0], replay_logits(animal.build(), IDS, S, W))


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("dory" not in supported_model_types(), reason="this Transformers does not know Dory")
def test_dory_caches_every_loop_and_keeps_to_their_number():
    refused_by_injection(
        NotImplementedError,
        animal_of("dory", "loops", recurrent_kv_cache_mode="last_loop").build(),
        "dory",
        "last_loop",
        "recurrent_kv_cache_mode='per_loop'",
    )
    model = inject_attention_sinks(animal_of("dory", "loops").build(), S, W)
    _, cache = stream(model, IDS[None, :30])
    before, loops = state_of(cache), model.config.n_recurrent_loops
    model.config.n_recurrent_loops = loops + 1
    refused(ValueError, lambda: model(IDS[None, 30:], cache=cache), "cache was made for another number of layers")
    assert_same_state(cache, before)
    other = inject_attention_sinks(animal_of("dory", "loops", n_recurrent_loops=loops + 1).build(), S, W)
    other.load_state_dict(model.state_dict())
    assert_close(stream(model, IDS[None, :30])[0], stream(other, IDS[None, :30])[0])
