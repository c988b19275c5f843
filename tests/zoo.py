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
    cuts_to_one_layer: bool = True
    one_layer: dict = field(default_factory=lambda: {"num_hidden_layers": 1})

    def __str__(self):
        return " ".join([self.model_type, *sorted(self.claims)])

    def build(self, implementation=None):
        """The plain model, with the same weights at every call."""
        config = AutoConfig.for_model(self.model_type, **{**SIZES, **self.config})
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


def row(model_type, *claims, implementations=("sdpa", "eager"), **config):
    return Animal(model_type, config, frozenset(claims), implementations)


ZOO = [
    row("llama", "rope halves", "grouped heads", num_key_value_heads=2),
    row("mistral", "full_attention", "grouped heads", num_key_value_heads=2, sliding_window=None),
    row("mistral", "sliding_attention", num_key_value_heads=2, sliding_window=24),
    row("gpt_neox", "partial", "parallel residual", rotary_pct=0.25, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    row("gpt_neox", "rope halves", use_parallel_residual=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}),
    row("falcon", "rope halves", "parallel residual", new_decoder_architecture=True, num_kv_heads=2),
    row("falcon", "rope halves", multi_query=True, parallel_attn=False, new_decoder_architecture=False),
    row("falcon", "alibi, odd heads", alibi=True, hidden_size=96, num_attention_heads=6, multi_query=False,
        new_decoder_architecture=False, implementations=("sdpa",)),
    row("mpt", "alibi", max_seq_len=256, attn_config={"clip_qkv": 1.0}, implementations=("eager",)),
    row("mpt", "alibi, odd heads", hidden_size=96, num_attention_heads=6, max_seq_len=256, implementations=("eager",)),
    row("gptj", "rope neighbours", "partial", rotary_dim=8, implementations=("eager",)),
    row("qwen2", "grouped heads", num_key_value_heads=2),
    row("stablelm", "partial", "grouped heads", "query-key norm", num_key_value_heads=2, qk_layernorm=True, use_qkv_bias=True),
]
