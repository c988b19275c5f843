"""Tiny configurations, at least one for every supported architecture: a new architecture is one more entry of ENTRIES.

Weights are random and large, so that every position shows in the logits, whose standard deviation is about 1.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GPTJModel

from attention_sinks import supported_model_types
from attention_sinks.versions import transformers_release
from support.helpers import VOCABULARY, random_ids

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

# What else is made tiny, in the configurations that know it.
PARTS = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_expert_group": 1,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
LATENT = {"qk_rope_head_dim": 8, "head_dim": 8, "num_key_value_heads": 4}
SLIDING = {
    "num_hidden_layers": 3,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


@dataclass(frozen=True)
class Animal:
    """One tiny model.

    Attributes
    ----------
    model_type : str
    config : dict
        What differs from SIZES.
    claims : set of str
        What `features.features_of` must find: what makes this entry worth its time.
    implementations : tuple of str
        The attention implementations that the architecture has. The logits vary by 1 with the first.
    pads_later : bool
        Whether later calls may be padded; no where a layer carries states that padding would change.
    scale : float
        Standard deviation of the weights, large enough for every position to show.
    text : str or None
        The type of the text decoder, for a model for text and images.
    parts : dict
        The other parts of the configuration of such a model.
    one_layer : dict
        What makes it a model of a single attention layer, or ALWAYS_SEVERAL.
    auto : type
        The Auto class that builds it.
    """

    model_type: str
    config: dict = field(default_factory=dict)
    claims: frozenset = frozenset()
    implementations: tuple = ("sdpa", "eager")
    pads_later: bool = True
    scale: float = 0.2
    text: str | None = None
    parts: dict = field(default_factory=dict)
    one_layer: dict = field(default_factory=lambda: {"num_hidden_layers": 1})
    auto: type = AutoModelForCausalLM

    def __str__(self):
        return " ".join([self.model_type, *sorted(self.claims)])

    def build(self, implementation=None):
        """The plain model, with the same weights at every call; by the first implementation its logits vary by 1."""
        first = self.implementations[0]
        model = self._make(implementation or first)
        measured = model if implementation in (None, first) else self._make(first)
        with torch.no_grad():
            model.get_output_embeddings().weight.div_(measured(random_ids(1, 64)).logits.std())
        return model

    def _make(self, implementation):
        config = config_of(self)
        config._attn_implementation = implementation
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.auto.from_config(config).float().eval()
        return randomise_by_kind(model, self.scale)


def config_of(animal):
    """The config of a tiny model, a wrapper around its decoder's included."""
    config = config_of_type(animal.text or animal.model_type, animal.config)
    if animal.text:
        return AutoConfig.for_model(animal.model_type, text_config=config.to_dict(), **animal.parts)
    return config


def config_of_type(model_type, changes):
    known = AutoConfig.for_model(model_type).to_dict()
    parts = {name: value for name, value in PARTS.items() if name in known}
    latent = LATENT if "qk_rope_head_dim" in known else {}
    return AutoConfig.for_model(model_type, **{**SIZES, **parts, **latent, **changes})


def randomise_by_kind(model, scale):
    """Fill `model` with weights that make its logits depend on everything."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if isinstance(module, nn.Embedding):
                    parameter.copy_(noise)
                elif norm and name == "weight":
                    parameter.add_(scale * noise)
                else:
                    parameter.copy_(scale * noise)
    return model


TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SDPA, EAGER = ("sdpa",), ("eager",)
TABLE = ("sdpa", "eager") if GPTJModel._supports_sdpa else EAGER  # since Transformers 5.24
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


SHARED = {
    "num_hidden_layers": 4,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
}
LINEAR = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "pads_later": False}
CONV = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "pads_later": False}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
GATED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
COMPASS_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 4]}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
}


def longrope(length, pairs):
    factors = {"short_factor": [1.0 + i / 4 for i in range(pairs)], "long_factor": [1.5 + i for i in range(pairs)]}
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": length,
        "partial_rotary_factor": pairs / 8,
        **factors,
    }


def partial_rope(factor):
    return {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": factor}


ONE_LAYER = {"num_hidden_layers": 1}
ALWAYS_SEVERAL = {"num_hidden_layers": None}
ONE_OWN = {**ONE_LAYER, "layer_types": ["full_attention"], "num_kv_shared_layers": 0}
ONE_WIDE = {**ONE_OWN, "per_layer_config": {"0": {"head_dim": 32}}}
ONE_FULL_LAYER = {**ONE_LAYER, "layer_types": ["full_attention"]}


def row(model_type, *claims, implementations=("sdpa", "eager"), one_layer=None, pads_later=True, **config):
    text, parts, scale = config.pop("text", None), config.pop("parts", {}), config.pop("scale", 0.2)
    one_layer = one_layer or (ONE_FULL_LAYER if "layer_types" in config else ONE_LAYER)
    claims, auto = frozenset(claims), config.pop("auto", AutoModelForCausalLM)
    return Animal(model_type, config, claims, implementations, pads_later, scale, text, parts, one_layer, auto)


SIGLIP = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 1,
}
WIDE_FULL = {"1": {"head_dim": 32}, "3": {"head_dim": 32}}
GOT = {
    "vision_config": {
        "hidden_size": 16,
        "output_channels": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "mlp_dim": 16,
        "global_attn_indexes": [0],
        "window_size": 2,
    }
}
APERTUS_TOWERS = {
    "vision_config": {
        "codebook_size": 8,
        "embed_dim": 16,
        "latent_channels": 16,
        "base_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "resolution": 16,
    },
    "audio_config": {"model_type": "wavtokenizer_encoder", "codebook_size": 8},
    "image_token_id": 1,
    "audio_token_id": 2,
    "image_token_offset": 40,
    "audio_token_offset": 48,
}
MOSS = {"audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
PHI4 = {
    "vision_config": {**SMALL, "num_hidden_layers": 2, "image_size": 28, "crop_size": 28},
    "audio_config": {**SMALL, "num_blocks": 1, "ext_pw_out_channel": 16, "nemo_conv_channels": 16},
}
NO_TOWERS = {"vision_config": None, "audio_config": None}
LLAMA4 = {
    "num_hidden_layers": 3,
    "no_rope_layers": [1, 0, 1],
    "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
    "attention_chunk_size": 11,
    "floor_scale": 4,
    "intermediate_size_mlp": 96,
}
LLAMA4_ONE = {"num_hidden_layers": 1, "no_rope_layers": [0], "layer_types": ["full_attention"]}
ZAMBA = {
    "num_hidden_layers": 3,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "use_mamba_kernels": False,
    "mamba_d_state": 8,
    "attention_head_dim": 32,
    "pads_later": False,
    "one_layer": ALWAYS_SEVERAL,
}
ZAMBA2 = {
    **ZAMBA,
    "hybrid_layer_ids": [1, 2],
    "n_mamba_heads": 4,
    "mamba_headdim": 32,
    "chunk_size": 16,
    "num_mem_blocks": 1,
}
ZAYA = {
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
    "sliding_window": 9,
    "num_experts_per_tok": 1,
    "router_hidden_size": 16,
    "pads_later": False,
    "one_layer": ALWAYS_SEVERAL,
}
# At S + W + 1 = 17 the indexer selects 4 blocks of 4 and the token that is left over; from 20 on it leaves keys out.
QWEN4 = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "pads_later": False,
    "eos_token_id": 1,
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_layer_ids": [3],
    "ple_embed_dim": 16,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "one_layer": {"num_hidden_layers": 1, "layer_types": ["full_attention"], "ple_layer_ids": []},
}
SPARSE = {"index_topk": 18, "index_n_heads": 2, "index_head_dim": 16}
HY_V4_VL = {
    **SPARSE,
    "indexer_types": ["full", "shared"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}
HY_V4_VL_TOWER = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "out_hidden_size": 64,
        "max_image_size": 32,
    }
}
DOTS3_TOWERS = {"vision_config": {"adapter_out_dim": 64}, "audio_config": {"adapter_out_dim": 64}}  # are not built
DOTS3 = {
    **SPARSE,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "indexed_attention", "sliding_attention"],
    "sliding_window": 9,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
    "shared_experts_intermediate_size": 32,
    "one_layer": {"num_hidden_layers": 1, "layer_types": ["indexed_attention"]},
}

BAILING = {**LINEAR, "linear_head_dim": 16, "linear_num_heads": 4}
LOW_RANK = ("low-rank queries",) if transformers_release() >= (5, 24) else ()  # which it has since
DORY = {
    **SLIDING,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "n_input_layers": 1,
    "n_recurrent_layers": 2,
    "n_output_layers": 1,
    "n_recurrent_loops": 3,
    "initializer_range": 0.4,
    "ngpt_alpha_init": 1.0,
    "one_layer": {
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "n_input_layers": 1,
        "n_recurrent_layers": 0,
        "n_output_layers": 0,
    },
}
LARA = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 9,
    "pads_later": False,
}

ENTRIES = [
    # Attention sees all that came before, rotary positions.
    row("apertus", "query-key norm", "rope:llama3"),
    row("apertus1p5_text", "query-key norm", "rope:llama3", "grouped heads", output_vocab_size=VOCABULARY - 8),
    row("arcee"),
    row("aria_text", "experts"),
    row("bitnet"),
    row("codegen", "rope neighbours", "partial", rotary_dim=8, implementations=TABLE),
    row("cohere", "rope neighbours", "query-key norm", use_qk_norm=True),
    row(
        "dbrx",
        "experts",
        d_model=64,
        n_heads=4,
        n_layers=2,
        max_seq_len=256,
        attn_config={"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    row("diffllama", implementations=EAGER),
    row("doge", "query-key norm", implementations=("eager", "sdpa")),  # older releases see the future with sdpa
    row("dots1", "experts", "query-key norm"),
    row("emu3", text="emu3_text_model", **TOKENS),
    row("ernie4_5", "rope neighbours"),
    row("ernie4_5_moe", "rope neighbours", "experts"),
    row("exaone", "grouped heads"),
    row("falcon", "rope halves", "parallel residual", new_decoder_architecture=True, num_kv_heads=2),
    row("falcon", "rope halves", multi_query=True, parallel_attn=False, new_decoder_architecture=False),
    row("flex_olmo", "experts", "query-key norm"),
    row("gemma"),
    row("glm", "rope neighbours", "partial"),
    row("glm4", "rope neighbours", "partial"),
    row("glm4_moe", "partial", "experts", "query-key norm", use_qk_norm=True),
    row("gpt_neox", "partial", "parallel residual", rope_parameters=partial_rope(0.25)),
    row("gpt_neox", "rope halves", use_parallel_residual=False, rope_parameters=partial_rope(1.0)),
    row("gpt_neox_japanese", implementations=EAGER),
    row("gptj", "rope neighbours", "partial", rotary_dim=8, implementations=TABLE),
    row("granite", attention_multiplier=0.3),
    row("granitemoe", "experts"),
    row("granitemoeshared", "experts"),
    row("helium", "rope neighbours"),
    row("hrm_text", num_hidden_layers=1, H_cycles=2, L_cycles=1, one_layer=ALWAYS_SEVERAL),
    row("hunyuan_v1_dense", "query-key norm"),
    row("hunyuan_v1_moe", "query-key norm", "experts"),
    row("hy_v3", "experts", "query-key norm"),
    row("hyperclovax"),
    row("internlm3"),
    row("iquestcoder"),
    row("jais2"),
    row("jetmoe", "experts", kv_channels=16),
    row("llama", "grouped heads"),
    row("llama", "rope:yarn", rope_parameters=YARN),
    row("mellum", "experts", "query-key norm"),
    row("minimax_m2", "experts", "query-key norm"),
    row("mistral", "full_attention", "grouped heads", sliding_window=None),
    row("mixtral", "experts"),
    row("nanochat"),
    row("nemotron", "partial"),
    row("olmo", clip_qkv=2.0),
    row("olmo2", "query-key norm"),
    row("olmoe", "experts", "query-key norm"),
    row("persimmon", "partial", "query-key norm"),
    row("phi", "partial", "query-key norm", qk_layernorm=True),
    row("phi3", original_max_position_embeddings=256),
    row(
        "phi3",
        "partial",
        "rope:longrope",
        rope_parameters=longrope(64, 4),
        original_max_position_embeddings=64,
        max_position_embeddings=512,
    ),
    row("phimoe", "experts"),
    row("qwen2", "grouped heads"),
    row("qwen2_moe", "experts"),
    row("qwen3", "query-key norm"),
    row("qwen3_moe", "experts", "query-key norm"),
    row("sarvam_moe", "experts", "query-key norm", "grouped heads"),
    row("seed_oss"),
    row("smollm3", "no positions", "rope halves", num_hidden_layers=3, no_rope_layers=[1, 0, 1]),
    row("solar_open", "experts"),
    row("stablelm", "partial", "grouped heads", "query-key norm", qk_layernorm=True, use_qkv_bias=True),
    row("starcoder2"),
    # Scales that depend on the query's position.
    row("beam", "no positions", "query-key norm", **SLIDING),
    row("llama4_text", "no positions", "chunked_attention", "experts", one_layer=LLAMA4_ONE, **LLAMA4),
    row(
        "ministral3",
        "rope:yarn",
        rope_parameters={**YARN, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8},
    ),
    # Natively sliding layers, in all layers or in some.
    row("mistral", "sliding_attention", sliding_window=24),
    row("ministral", "sliding_attention", sliding_window=24),
    row("kolibri1", "query-key norm", "sliding_attention", "full_attention", **SLIDING),
    row("moshi", "sliding_attention", sliding_window=24),
    row("afmoe", "no positions", "experts", "query-key norm", **SLIDING),
    row("cohere2", "rope neighbours", "no positions", "sliding_attention", "full_attention", **SLIDING),
    row("cohere2_moe", "rope neighbours", "no positions", "experts", **SLIDING),
    row(
        "cohere_compass_text",
        "no positions",
        "sliding_attention",
        rope_parameters={"sliding_attention": COMPASS_ROPE, "full_attention": None},
        **SLIDING,
    ),
    row("cwm", "sliding_attention", "full_attention", **TOKENS, **SLIDING),
    row("dory", "loops", "query-key norm", "two thetas", "sliding_attention", "full_attention", **DORY),
    row(
        "dory",
        "sliding_attention",
        **{**DORY, "n_recurrent_loops": 1, "layer_types": ["sliding_attention"] * 4, "sliding_window": 24},
    ),
    row("exaone4", "no positions", "sliding_attention", **SLIDING),
    row("exaone_moe", "no positions", "sliding_attention", "experts", **SLIDING),
    row("flint", "learned sinks", "query-key norm", implementations=EAGER, **SLIDING),
    row("gemma2", "softcap", "sliding_attention", implementations=EAGER, **SLIDING),
    row("gemma3_text", "two thetas", "query-key norm", "sliding_attention", **SLIDING),
    row("gemma3n_text", "two thetas", "shared keys", one_layer=ONE_OWN, **SHARED),
    row("gemma4_text", "shared keys", per_layer_config=WIDE_FULL, one_layer=ONE_WIDE, **SHARED),
    row("gemma4_unified_text", "sliding_attention", hidden_size_per_layer_input=0, per_layer_config=None, **SLIDING),
    row("gpt_oss", "learned sinks", "rope:yarn", "experts", implementations=EAGER, rope_parameters=YARN, **SLIDING),
    row("granite_swa", "learned sinks", "sliding_attention", implementations=EAGER, **SLIDING),
    row("granitemoe_swa", "learned sinks", "experts", implementations=EAGER, **SLIDING),
    row("laguna", "partial", "query-key norm", "sliding_attention", **SLIDING),
    row("mimo_v2_flash", "learned sinks", "partial", "two thetas", "experts", implementations=EAGER, **SLIDING),
    row("modernbert-decoder", "two thetas", "sliding_attention", **TOKENS, **SLIDING),
    row("olmo3", "query-key norm", "sliding_attention", **SLIDING),
    row("vaultgemma", "softcap", "sliding_attention", implementations=EAGER, **SLIDING),
    # Linear attention, convolutions or state spaces beside attention.
    row("bailing_hybrid", "latent", "linear_attention", q_lora_rank=None, **BAILING),
    row("bailing_hybrid", "latent", *LOW_RANK, **BAILING),
    row(
        "bamba",
        "linear_attention",
        "full_attention",
        "partial",
        num_hidden_layers=2,
        attn_layer_indices=[1],
        one_layer={"num_hidden_layers": 1, "attn_layer_indices": [0]},
        pads_later=False,
        **MAMBA,
    ),
    row(
        "falcon_h1", "hybrid", one_layer=ALWAYS_SEVERAL, mamba_d_ssm=128, num_hidden_layers=2, pads_later=False, **MAMBA
    ),
    row("granitemoehybrid", "no positions", "linear_attention", position_embedding_type="nope", **MAMBA, **LINEAR),
    row("granitemoehybrid", "rope halves", "linear_attention", position_embedding_type="rope", **MAMBA, **LINEAR),
    row(
        "jamba",
        "no positions",
        "linear_attention",
        "experts",
        num_hidden_layers=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=8,
        pads_later=False,
        one_layer={"num_hidden_layers": 1, "attn_layer_offset": 0},
    ),
    row(
        "kimi_linear",
        "no positions",
        "linear_attention",
        num_experts_per_token=2,
        linear_head_dim=16,
        linear_num_heads=4,
        **LINEAR,
    ),
    row("lara_mini", "linear_attention", "sliding_attention", "no positions", "experts", **GATED, **LARA),
    row("lfm2", "conv", "query-key norm", **CONV),
    row("lfm2_moe", "conv", "experts", num_dense_layers=1, **CONV),
    row(
        "lfm3",
        "conv",
        "query-key norm",
        **{
            **CONV,
            "sliding_window": 9,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "sliding_attention", "conv"],
        },
    ),
    row("minimax", "linear_attention", "experts", block_size=16, **LINEAR),
    row(
        "nemotron_h",
        "no positions",
        "linear_attention",
        "experts",
        layers_block_type=["linear_attention", "full_attention", "moe", "mlp"],
        use_mamba_kernels=False,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=16,
        chunk_size=16,
        moe_shared_expert_intermediate_size=32,
        n_groups=1,
        num_hidden_layers=None,
        pads_later=False,
        one_layer={"layers_block_type": ["full_attention"]},
    ),
    row("olmo_hybrid", "linear_attention", "query-key norm", one_layer=ALWAYS_SEVERAL, **GATED, **LINEAR),
    row("qwen3_5_text", "linear_attention", "partial", **GATED, **LINEAR),
    row("qwen3_5_moe_text", "linear_attention", "partial", "experts", **GATED, **LINEAR),
    row("qwen3_next", "linear_attention", "partial", "experts", **GATED, **LINEAR),
    row("zamba", "no positions", "hybrid", mamba_dt_rank=8, **ZAMBA),
    row("qwen4_exp_text", "indexer", "hashed n-grams", "experts", **GATED, **QWEN4),
    row(
        "recurrent_gemma",
        "recurrence",
        "partial",
        num_hidden_layers=4,
        block_types=["recurrent", "attention"],
        attention_window_size=24,
        pads_later=False,
        one_layer={"num_hidden_layers": 1, "block_types": ["attention"]},
    ),
    row("zamba2", "hybrid", scale=0.1, use_mem_rope=True, **ZAMBA2),
    row("zamba2", "no positions", "hybrid", scale=0.1, **ZAMBA2),
    row("zaya", "hybrid", "hybrid_sliding", "convolved keys", "two thetas", "partial", "experts", **ZAYA),
    row(
        "zaya",
        "hybrid_sliding",
        "convolved keys",
        **{**ZAYA, "sliding_window": 24, "layer_types": ["hybrid_sliding"] * 3},
    ),
    # Latent attention.
    row("axk1", "latent", "experts"),
    row("deepseek_v2", "latent", "experts"),
    row("deepseek_v3", "latent", "experts"),
    row("glm4_moe_lite", "latent", "experts"),
    row(
        "longcat_flash",
        "latent",
        "experts",
        one_layer=ALWAYS_SEVERAL,
        num_layers=1,
        zero_expert_num=2,
        moe_topk=2,
        expert_ffn_hidden_size=32,
        ffn_hidden_size=64,
    ),
    row("axk2", "latent", "indexer", "experts", **SPARSE),
    row("deepseek_v32", "latent", "indexer", "experts", **SPARSE),
    row("dots3_note_text", "latent", "indexer", "experts", "two thetas", "sliding_attention", **DOTS3),
    row("dots3_note", "latent", "indexer", text="dots3_note_text", parts=DOTS3_TOWERS, **DOTS3),
    row("glm_moe_dsa", "latent", "indexer", "experts", **SPARSE, indexer_types=["full", "shared"]),
    row("hy_v4", "latent", "indexer", "experts", "learned sinks", implementations=EAGER, **SPARSE),
    row("minicpm3", "latent"),
    row("sarvam_mla", "latent", "experts"),
    row("sarvam_mla", "latent", "experts", "rope:yarn", q_lora_rank=None, rope_parameters=YARN),
    row("youtu", "latent"),
    # Linear biases.
    row("bloom", "alibi", implementations=EAGER),
    row(
        "falcon",
        "alibi, odd heads",
        alibi=True,
        hidden_size=96,
        num_attention_heads=6,
        multi_query=False,
        new_decoder_architecture=False,
        implementations=SDPA,
    ),
    row("mpt", "alibi", max_seq_len=256, attn_config={"clip_qkv": 1.0}, implementations=EAGER),
    row("mpt", "alibi, odd heads", hidden_size=96, num_attention_heads=6, max_seq_len=256, implementations=EAGER),
    # Classes of our own for old checkpoints.
    row("Yi", "rope halves", "grouped heads"),
    row("stablelm_epoch", "partial", "grouped heads", use_qkv_bias=True),
    row("qwen", "rope halves", num_key_value_heads=4, head_dim=24, seq_length=64),
    row("btlm", "alibi", mup_scale_qk_dot_by_d=True, mup_embeddings_scale=1.5, **NO_DROPOUT),
    row("jais", "alibi, odd heads", hidden_size=96, num_attention_heads=6, alibi_scaling={"factor": 3.0}, **NO_DROPOUT),
    # Text decoders inside multimodal models.
    row("gemma3", "two thetas", text="gemma3_text", parts=SIGLIP, **SLIDING),
    row(
        "gemma4",
        "shared keys",
        text="gemma4_text",
        parts=NO_TOWERS,
        pad_token_id=0,
        one_layer=ONE_WIDE,
        per_layer_config=WIDE_FULL,
        **SHARED,
    ),
    row(
        "gemma4_unified",
        "sliding_attention",
        text="gemma4_unified_text",
        parts=NO_TOWERS,
        pad_token_id=0,
        per_layer_config=None,
        **SLIDING,
    ),
    row("llama4", "no positions", text="llama4_text", one_layer=LLAMA4_ONE, **LLAMA4),
    row("qwen3_5", "linear_attention", text="qwen3_5_text", **GATED, **LINEAR),
    row("qwen3_5_moe", "linear_attention", "experts", text="qwen3_5_moe_text", **GATED, **LINEAR),
    row("qwen4_exp", "indexer", text="qwen4_exp_text", **GATED, **QWEN4),
    row(
        "hy_v4_vl",
        "latent",
        "indexer",
        "experts",
        "learned sinks",
        "rope neighbours",
        text="hy_v4_vl_text",
        parts=HY_V4_VL_TOWER,
        implementations=EAGER,
        auto=AutoModelForImageTextToText,
        **HY_V4_VL,
    ),
    row(
        "apertus1p5",
        "query-key norm",
        text="apertus1p5_text",
        parts=APERTUS_TOWERS,
        implementations=EAGER,
        auto=AutoModelForImageTextToText,
    ),
    row("fuyu", "query-key norm", "partial", text="persimmon"),
    row("got_ocr2", text="qwen2", parts=GOT, implementations=EAGER),
    row(
        "phi4_multimodal",
        "grouped heads",
        "rope:longrope",
        rope_parameters=longrope(64, 8),
        original_max_position_embeddings=64,
        max_position_embeddings=512,
        **PHI4,
    ),
    row("moss_transcribe_diarize", "query-key norm", text="qwen3", parts=MOSS),
]

KNOWN = {AutoModelForCausalLM: supported_model_types(), AutoModelForImageTextToText: CONFIG_MAPPING}

# Older Transformers do not know all of them.
ZOO = [animal for animal in ENTRIES if animal.model_type in KNOWN[animal.auto]]


def animal_of(model_type, *claims, **changes):
    """The first animal of this type that has these features; `changes` replace entries of its configuration."""
    animal = next(a for a in ZOO if a.model_type == model_type and set(claims) <= a.claims)
    return replace(animal, config={**animal.config, **changes})


CORE = {"llama", "mistral", "falcon", "mpt", "gpt_neox", "gptj", "qwen", "stablelm_epoch", "btlm", "Yi"}
"""The architectures of 0.4.0: `make test` runs these, `make test-architectures` all."""

MODELS = [
    pytest.param(animal, id=str(animal), marks=() if animal.model_type in CORE else pytest.mark.every_architecture)
    for animal in ZOO
]
