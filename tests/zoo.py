"""Tiny configurations, at least one for every supported architecture: a new architecture is a row here.

Weights are random and large, so that every position shows in the logits, whose standard deviation is about 1.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from helpers import VOCABULARY, random_ids

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
        What `features.features_of` must find: what makes this row worth its time.
    """

    model_type: str
    config: dict = field(default_factory=dict)
    claims: frozenset = frozenset()
    implementations: tuple = ("sdpa", "eager")
    pads_later: bool = True
    one_layer: dict = field(default_factory=lambda: {"num_hidden_layers": 1})

    def __str__(self):
        return " ".join([self.model_type, *sorted(self.claims)])

    def build(self, implementation=None):
        """The plain model, with the same weights at every call."""
        default = AutoConfig.for_model(self.model_type)
        parts = {name: value for name, value in PARTS.items() if hasattr(default, name)}
        latent = LATENT if hasattr(default, "qk_rope_head_dim") else {}
        config = AutoConfig.for_model(self.model_type, **{**SIZES, **parts, **latent, **self.config})
        config._attn_implementation = implementation or self.implementations[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).float().eval()
        return randomise(model)


def randomise(model):
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
                    parameter.add_(0.2 * noise)
                else:
                    parameter.copy_(0.2 * noise)
        head = model.get_output_embeddings()
        head.weight.div_(model(random_ids(1, 64)).logits.std())
    return model


SDPA, EAGER = ("sdpa",), ("eager",)
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def partial_rope(factor):
    return {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": factor}


ONE_LAYER = {"num_hidden_layers": 1}
ONE_FULL_LAYER = {**ONE_LAYER, "layer_types": ["full_attention"]}


def row(model_type, *claims, implementations=("sdpa", "eager"), one_layer=None, pads_later=True, **config):
    one_layer = one_layer or (ONE_FULL_LAYER if {"sliding_window", "layer_types"} <= set(config) else ONE_LAYER)
    return Animal(model_type, config, frozenset(claims), implementations, pads_later, one_layer)


ZOO = [
    row("afmoe", "no positions", "experts", "query-key norm", **SLIDING),
    row("apertus", "query-key norm", "rope:llama3"),
    row("arcee"),
    row("aria_text", "experts"),
    row("axk1", "latent", "experts"),
    row("bitnet"),
    row("bloom", "alibi", implementations=EAGER),
    row("codegen", "rope neighbours", "partial", rotary_dim=8, implementations=EAGER),
    row("cohere", "rope neighbours"),
    row("cohere2", "rope neighbours", "no positions", "sliding_attention", "full_attention", **SLIDING),
    row("cohere2_moe", "rope neighbours", "no positions", "experts", **SLIDING),
    row("deepseek_v2", "latent", "experts"),
    row("deepseek_v3", "latent", "experts"),
    row("diffllama", implementations=EAGER),
    row("llama", "rope halves", "grouped heads"),
    row("mistral", "full_attention", "grouped heads", sliding_window=None),
    row("mistral", "sliding_attention", sliding_window=24),
    row("gpt_neox", "partial", "parallel residual", rope_parameters=partial_rope(0.25)),
    row("gpt_neox", "rope halves", use_parallel_residual=False, rope_parameters=partial_rope(1.0)),
    row("falcon", "rope halves", "parallel residual", new_decoder_architecture=True, num_kv_heads=2),
    row("falcon", "rope halves", multi_query=True, parallel_attn=False, new_decoder_architecture=False),
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
    row("gptj", "rope neighbours", "partial", rotary_dim=8, implementations=EAGER),
    row("qwen2", "grouped heads"),
    row("stablelm", "partial", "grouped heads", "query-key norm", qk_layernorm=True, use_qkv_bias=True),
    row("Yi", "rope halves", "grouped heads"),
    row("stablelm_epoch", "partial", "grouped heads", use_qkv_bias=True),
    row("qwen", "rope halves", num_key_value_heads=4, head_dim=24, seq_length=64),
    row("btlm", "alibi", mup_scale_qk_dot_by_d=True, mup_embeddings_scale=1.5, **NO_DROPOUT),
    row("jais", "alibi, odd heads", hidden_size=96, num_attention_heads=6, alibi_scaling={"factor": 3.0}, **NO_DROPOUT),
]
