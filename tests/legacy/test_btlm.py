"""BTLM and JAIS: a class of our own against its formulae, and as good a citizen of Transformers as native ones."""

import copy
import json

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache

from attention_sinks import inject_attention_sinks
from attention_sinks.legacy import register_legacy
from attention_sinks.legacy.btlm import BtlmConfig, BtlmForCausalLM, BtlmModel, JaisConfig
from attention_sinks.legacy.jais import JaisForCausalLM
from attention_sinks.positions.alibi import alibi_slopes
from attention_sinks.versions import CACHE
from references.btlm_formulae import logits_by_formula, slopes
from support.helpers import (
    VOCABULARY,
    assert_close,
    assert_tokens_follow,
    cut,
    largest_difference,
    plain_logits,
    random_ids,
    refused,
    stream,
)
from support.old_checkpoints import write_shards

SIZES = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_inner": 70}
SCALES = {"mup_embeddings_scale": 1.5, "mup_output_alpha": 2.0, "mup_width_scale": 0.25, "mup_scale_qk_dot_by_d": True}
JAIS_SCALES = {"embeddings_scale": 1.5, "width_scale": 0.5, "scale_qk_dot_by_d": True}
OTHERS = {"layer_norm_epsilon": 1e-3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OTHERS |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
FACTS = {
    "n_head": 6,
    "n_layer": 2,
    "eps": 1e-3,
    "embeddings_scale": 1.5,
    "logits_scale": 0.5,
    "scores_over_width": True,
}
IDS = random_ids(30)


def tiny(model_class=BtlmForCausalLM, seed=0, config_class=BtlmConfig, scales=SCALES, **changes):
    """A plain model with weights that make its logits depend on every position; the same at every call."""
    model = model_class(config_class(**{**SIZES, **scales, **OTHERS, **changes}))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        one = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        parameter.data = (0.4 if "wte" in name else 0.2) * noise + one
    return model.eval()


def facts_of(**changes):
    return {**FACTS, **changes}


def expected(model, ids, **changes):
    return logits_by_formula(model.state_dict(), ids, facts_of(**changes))


# ---- the formulae


VARIANTS = {
    "as released": ({}, {}),
    "heads a power of two": ({"n_head": 4}, {"n_head": 4}),
    "three heads": ({"n_head": 3}, {"n_head": 3}),
    "one head": ({"n_head": 1}, {"n_head": 1}),
    "scores over the root": ({"mup_scale_qk_dot_by_d": False}, {"scores_over_width": False}),
    "scores as they are": ({"scale_attn_weights": False}, {"scale_attn_weights": False}),
    "scores by layer": ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": True}),
    "no gate": ({"activation_function": "gelu_new"}, {"activation_function": "gelu_new"}),
    "four times as wide": ({"n_inner": None}, {}),
    "distances divided": ({"alibi_scaling": {"type": "linear", "factor": 4.0}}, {"alibi_factor": 4.0}),
    "text as long as trained": ({"alibi_scaling": {"train_seq_len": 30}}, {}),
    "text twice as long": ({"alibi_scaling": {"type": "linear", "train_seq_len": 15}}, {"alibi_factor": 2.0}),
    "other scales": (
        {"mup_embeddings_scale": 3, "mup_output_alpha": 1.0, "mup_width_scale": 1.0},
        {"embeddings_scale": 3, "logits_scale": 1.0},
    ),
}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("config, facts", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_the_formulae(config, facts, implementation):
    model = tiny(attn_implementation=implementation, **config)
    assert model.config._attn_implementation == implementation
    logits = plain_logits(model, IDS[None])[0]
    assert 0.3 < logits.std() < 30
    assert_close(logits, expected(model, IDS, **facts))


def test_each_fact_matters():
    """A formula with one fact changed is seen to be another."""
    model = tiny()
    logits = plain_logits(model, IDS[None])[0]
    mistakes = [
        {"embeddings_scale": 1.4},
        {"logits_scale": 0.49},
        {"scores_over_width": False},
        {"alibi_factor": 1.1},
        {"eps": 1e-5},
        {"scale_attn_by_inverse_layer_idx": True},
    ]
    for mistake in mistakes:
        assert largest_difference(logits, expected(model, IDS, **mistake)) > 2e-3, mistake


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 32, 40, 52, 71])
def test_slopes(heads):
    assert_close(alibi_slopes(heads), torch.tensor(slopes(heads)), tolerance=1e-7)


def test_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [0.5**i for i in range(1, 9)]


@pytest.mark.parametrize("scales", [SCALES, JAIS_SCALES, {**JAIS_SCALES, "mup_output_alpha": 7.0}])
@pytest.mark.parametrize("config_class", [BtlmConfig, JaisConfig])
def test_both_namings_of_the_scales(config_class, scales):
    model_class = BtlmForCausalLM if config_class is BtlmConfig else JaisForCausalLM
    model = tiny(model_class, config_class=config_class, scales=scales)
    assert_close(plain_logits(model, IDS[None])[0], expected(model, IDS))
    again = config_class.from_dict(model.config.to_dict())
    assert again.to_diff_dict() == model.config.to_diff_dict()


# ---- caches, padding, generation


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("calls", [[1], [7, 1, 1, 5], [29, 1]])
def test_cached_calls(calls, implementation):
    model = tiny(attn_implementation=implementation)
    logits, cache = stream(model, IDS[None], cut(len(IDS), calls))
    assert_close(logits[0], expected(model, IDS))
    assert type(cache) is DynamicCache and cache.get_seq_length() == len(IDS)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_left_padding(implementation):
    """In the first call and while decoding, a padded row is what it is alone."""
    model, short = tiny(attn_implementation=implementation), random_ids(18, seed=1)
    ids, mask = torch.stack([IDS, IDS]), torch.ones(2, 30, dtype=torch.long)
    ids[1, 12:], mask[1, :12] = short, 0
    wanted = [expected(model, IDS), expected(model, short)]
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        cache, pieces = None, []
        for start, stop in ((0, 20), (20, 26), (26, 27), (27, 28), (28, 30)):
            outputs = model(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache, use_cache=True)
            cache = outputs[CACHE]
            pieces.append(outputs.logits)
    for logits in (whole, torch.cat(pieces, dim=1)):
        assert_close(logits[0], wanted[0])
        assert_close(logits[1, 12:], wanted[1])


def test_generate():
    model = tiny()
    sequence = model.generate(IDS[None, :10], max_new_tokens=12, do_sample=False)[0]
    assert_tokens_follow(expected(model, sequence), sequence, 10)


def test_generate_with_left_padding_beams_and_a_static_cache():
    model = tiny()
    ids, mask = torch.stack([IDS[:10], IDS[:10]]), torch.ones(2, 10, dtype=torch.long)
    ids[1, 4:], mask[1, :4] = IDS[:6], 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    sequences = model.generate(ids, **options)
    alone = [model.generate(IDS[None, :n], max_new_tokens=8, do_sample=False)[0, n:] for n in (10, 6)]
    assert torch.equal(sequences[:, 10:], torch.stack(alone))
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), sequences)
    assert torch.equal(model.generate(ids, use_cache=False, **options), sequences)
    beams = model.generate(ids, num_beams=3, **options)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **options))


def test_a_static_cache_gives_the_same_logits():
    model = tiny()
    cache = StaticCache(config=model.config, max_cache_len=40)
    logits, _ = stream(model, IDS[None], [12, 1, 1, 16], cache)
    assert_close(logits[0], expected(model, IDS))


def test_a_mask_of_four_dimensions_is_taken_as_it_is():
    model = tiny(attn_implementation="eager")
    blocked = torch.full((30, 30), torch.finfo(torch.float32).min).triu(1)
    visible = torch.ones(30, 30, dtype=torch.bool).tril()
    for mask in (blocked, visible):
        assert_close(plain_logits(model, IDS[None], attention_mask=mask[None, None])[0], expected(model, IDS))


# ---- streams


def test_distances_scaled_by_the_trained_length_are_scaled_once_for_a_stream():
    """As for a text of S + W + 1 tokens: a factor that grew with the stream would make early keys seem to move."""
    sizes = {"attention_sink_size": 4, "attention_sink_window_size": 12}
    ids = random_ids(1, 90)
    for trained, factor in ((9, 17 / 9), (40, None)):
        model = inject_attention_sinks(tiny(alibi_scaling={"train_seq_len": trained}), **sizes)
        fixed = inject_attention_sinks(tiny(alibi_scaling=factor and {"factor": factor}), **sizes)
        right, _ = stream(fixed, ids)
        for calls in ([1], [17, 5, 1, 1, 66]):
            assert_close(stream(model, ids, cut(90, calls))[0], right)
        assert_close(right[0, 16], plain_logits(tiny(alibi_scaling={"train_seq_len": trained}), ids[:, :17])[0, -1])


def test_slopes_of_the_checkpoint_are_streamed():
    """What a stream adds to its scores are the slopes the model has, whatever they are."""
    plain = tiny()
    plain.transformer.relative_pe.slopes *= 3
    model = inject_attention_sinks(copy.deepcopy(plain), attention_sink_size=4, attention_sink_window_size=30)
    assert_close(stream(model, IDS[None], [9, 1, 20])[0], plain_logits(plain, IDS[None]))


# ---- habits of Transformers


def test_outputs():
    model = tiny(attn_implementation="eager")
    with torch.no_grad():
        outputs = model(IDS[None], output_hidden_states=True, output_attentions=True, labels=IDS[None])
        as_tuple = model(IDS[None], return_dict=False, use_cache=False)
        last = model(IDS[None], logits_to_keep=1).logits
        some = model(IDS[None], logits_to_keep=torch.tensor([3, 5])).logits
        embedded = model(inputs_embeds=model.get_input_embeddings()(IDS[None])).logits
        no_cache = model(IDS[None], use_cache=False)
    logits = expected(model, IDS)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(1, 30, 48)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(1, 6, 30, 30)] * 2
    assert_close(outputs.attentions[0].sum(-1), torch.ones(1, 6, 30))
    assert_close(model.lm_head(outputs.hidden_states[-1])[0] * 0.5, logits)
    assert_close(outputs.loss, torch.nn.functional.cross_entropy(logits[:-1], IDS[1:]))
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    assert_close(as_tuple[0][0], logits)
    assert_close(last[0], logits[-1:])
    assert_close(some[0], logits[[3, 5]])
    assert_close(embedded[0], logits)
    assert no_cache.get(CACHE) is None


def test_ids_or_embeddings_but_not_both():
    model = tiny()
    embeds = model.get_input_embeddings()(IDS[None])
    for arguments in ({}, {"input_ids": IDS[None], "inputs_embeds": embeds}):
        refused(ValueError, lambda arguments=arguments: model(**arguments), "input_ids", "inputs_embeds")


def test_tied_weights(tmp_path):
    model = tiny()
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    again = BtlmForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(plain_logits(again, IDS[None]), plain_logits(model, IDS[None]))
    untied = tiny(tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.transformer.wte.weight
    untied.save_pretrained(tmp_path)
    assert torch.equal(
        plain_logits(BtlmForCausalLM.from_pretrained(tmp_path), IDS[None]), plain_logits(untied, IDS[None])
    )


def test_resizing_the_embeddings():
    model = tiny()
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert_close(plain_logits(model, IDS[None])[0, :, :VOCABULARY], expected(tiny(), IDS))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    plain, saving = tiny().train(), tiny().train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        saving.enable_input_require_grads()
    for model in (plain, saving):
        model(IDS[None], labels=IDS[None]).loss.backward()
    gradients = [dict(model.named_parameters()) for model in (plain, saving)]
    for name, parameter in gradients[0].items():
        assert parameter.grad.abs().max() > 0, name
        assert_close(gradients[1][name].grad, parameter.grad, tolerance=1e-6)


def test_dropout_in_training_only():
    model = tiny(attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    assert_close(plain_logits(model, IDS[None])[0], expected(model, IDS))
    assert largest_difference(plain_logits(model.train(), IDS[None])[0], expected(model, IDS)) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision_keeps_slopes_and_has_no_nan(implementation, dtype, tmp_path):
    tiny().save_pretrained(tmp_path)
    model = BtlmForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation=implementation)
    assert model.transformer.h[0].attn.c_attn.weight.dtype == dtype
    assert model.transformer.relative_pe.slopes.dtype == torch.float32
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :12] = 0
    logits = plain_logits(model, torch.stack([IDS, IDS]), attention_mask=mask)
    assert logits.dtype == dtype and not logits.isnan().any()
    assert_close(logits[0], expected(tiny(), IDS), tolerance=0.2)


def test_fresh_weights():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(BtlmConfig(**{**SIZES, "n_embd": 192, "n_inner": 256}))
    block = model.transformer.h[0]
    for module, std in ((block.attn.c_attn, 0.02), (block.attn.c_proj, 0.01), (block.mlp.c_proj, 0.01)):
        assert abs(module.weight.std() / std - 1) < 0.1 and not module.bias.any()
    assert block.ln_1.weight.eq(1).all()
    assert torch.equal(model.transformer.relative_pe.slopes, alibi_slopes(6)[:, None])
    half = transformers.AutoModelForCausalLM.from_config(BtlmConfig(**SIZES), dtype=torch.bfloat16)
    assert half.transformer.wte.weight.dtype == torch.bfloat16
    assert torch.equal(half.transformer.relative_pe.slopes, alibi_slopes(6)[:, None])


def test_copies():
    model = tiny()
    assert_close(plain_logits(copy.deepcopy(model), IDS[None])[0], expected(model, IDS))


# ---- checkpoints


def write_old(folder, form="safetensors", model_type="btlm", state=None, **changes):
    """A checkpoint as the old code wrote it: attention buffers, slopes [heads, 1], half the names of GPT-2."""
    model = tiny()
    config = {**SIZES, **(SCALES if model_type == "btlm" else JAIS_SCALES), **OTHERS, **changes}
    config |= {
        "model_type": model_type,
        "architectures": [f"{model_type.upper()}LMHeadModel"],
        "auto_map": {"AutoConfig": "old_code.OldConfig", "AutoModelForCausalLM": "old_code.OldModel"},
        "activation_function": "swiglu",
        "position_embedding_type": "alibi",
        "reorder_and_upcast_attn": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "old_code.py").write_text("raise SystemExit('code of the checkpoint was run')\n")
    write_shards(old_state(model) if state is None else state, folder, form)
    return model


def old_state(model):
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


@pytest.mark.parametrize("trust", [None, True])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("model_type, name", [("btlm", "BtlmForCausalLM"), ("jais", "JaisForCausalLM")])
def test_an_old_checkpoint(model_type, name, form, trust, tmp_path):
    model = write_old(tmp_path, form, model_type)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, trust_remote_code=trust
    )
    assert type(loaded).__name__ == name and loaded.config.model_type == model_type
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(plain_logits(loaded, IDS[None]), plain_logits(model, IDS[None]))
    assert tuple(loaded.transformer.relative_pe.slopes.shape) == (6, 1)


def test_slopes_of_the_checkpoint_are_used(tmp_path):
    state = old_state(tiny())
    state["transformer.relative_pe.slopes"] = 2 * state["transformer.relative_pe.slopes"]
    model = write_old(tmp_path, state=state)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(plain_logits(loaded, IDS[None])[0], expected(model, IDS, alibi_factor=0.5))


def test_a_checkpoint_without_slopes_and_prefix(tmp_path):
    state = {name: tensor for name, tensor in old_state(tiny()).items() if "slopes" not in name}
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    model = write_old(tmp_path, state=state)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(plain_logits(loaded, IDS[None]), plain_logits(model, IDS[None]))


def test_missing_and_unknown_weights_are_named(tmp_path):
    state = old_state(tiny())
    state["transformer.wpe.weight"] = state.pop("transformer.h.1.mlp.c_fc2.weight")
    write_old(tmp_path, state=state)
    for name in ("AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification"):
        load = getattr(transformers, name).from_pretrained
        refused(ValueError, lambda load=load: load(tmp_path), "wpe.weight", "h.1.mlp.c_fc2.weight", str(tmp_path))


@pytest.mark.parametrize("model_type", ["btlm", "jais"])
@pytest.mark.parametrize(
    "head, output",
    [("SequenceClassification", (2, 3)), ("TokenClassification", (2, 15, 3)), ("QuestionAnswering", (2, 15))],
)
def test_other_heads(head, output, model_type, tmp_path):
    model = write_old(tmp_path, model_type=model_type, num_labels=3, pad_token_id=0)
    loaded = getattr(transformers, f"AutoModelFor{head}").from_pretrained(tmp_path)
    decoder = loaded.base_model
    assert isinstance(decoder, BtlmModel) and decoder.config.model_type == model_type
    assert loaded.get_input_embeddings() is decoder.wte
    with torch.no_grad():
        outputs = loaded(IDS.view(2, 15))
        assert_close(model.lm_head(decoder(IDS[None]).last_hidden_state)[0] * 0.5, expected(model, IDS))
    assert (outputs.start_logits if head == "QuestionAnswering" else outputs.logits).shape == output


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"position_embedding_type": "learned"}, ["position_embedding_type='learned'", "alibi"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"n_head": 5}, ["n_head=5", "n_embd=48"]),
        ({"alibi_scaling": {"type": "linear"}}, ["alibi_scaling", "factor"]),
        ({"alibi_scaling": {"type": "linear", "factor": 0.5}}, ["alibi_scaling", "0.5"]),
        ({"alibi_scaling": {"type": "linear", "factor": 2.0, "train_seq_len": 9}}, ["alibi_scaling", "9"]),
        ({"alibi_scaling": {"type": "dynamic", "factor": 2.0}}, ["alibi_scaling", "dynamic"]),
    ],
)
def test_configs_that_are_not_understood(changes, words):
    refused(ValueError, lambda: BtlmConfig(**{**SIZES, **changes}), *words)


def test_the_types_are_registered():
    register_legacy()
    assert type(transformers.AutoConfig.for_model("btlm")) is BtlmConfig
    assert type(transformers.AutoConfig.for_model("jais")) is JaisConfig
