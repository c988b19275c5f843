"""What a tiny model really has: layer kinds, position schemes, and what else is particular to its architecture."""

from attention_sinks.architecture.setup import setup_of
from attention_sinks.positions.alibi import Alibi
from attention_sinks.positions.rotary import NEIGHBOURS, Rotary
from references.replay import layer_names, text_config


def features_of(model):
    """Words for what the injected `model` has."""
    config, setup = text_config(model), setup_of(model)
    positions = setup.positions(setup.settings)
    found = set(layer_names(config))
    found |= {_scheme(position) for position in positions}
    rotaries = [position for position in positions if isinstance(position, Rotary)]
    found |= {f"rope:{kind}" for kind in _rope_types(model)}
    first = config.per_layer_config[0] if getattr(config, "per_layer_config", None) else config
    width = getattr(first, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if any(2 * len(inverse_frequencies(rotary)) < width for rotary in rotaries):
        found.add("partial")
    if len({tuple(inverse_frequencies(rotary).tolist()) for rotary in rotaries}) > 1:
        found.add("two thetas")
    if (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) < config.num_attention_heads:
        found.add("grouped heads")
    names = [name for name, _ in model.named_modules()]
    found |= {word for word, parts in MODULES.items() if any(part in name for name in names for part in parts)}
    parameters = [name.rpartition(".")[2] for name, _ in model.named_parameters()]
    found |= {"loops"} if getattr(config, "n_recurrent_loops", 1) > 1 else set()
    found |= {"learned sinks"} if "sinks" in parameters else set()
    found |= {word for word, names in SETTINGS.items() if any(getattr(config, name, None) for name in names)}
    return found


MODULES = {
    "experts": ["experts"],
    "query-key norm": ["q_norm", "k_norm", "q_layernorm", "query_layernorm", "qk_norm", "q_a_layernorm"],
    "convolved keys": ["conv_qk"],
    "recurrence": ["rg_lru"],
    "indexer": ["indexer"],
    "hashed n-grams": ["ngram_embedding"],
    "low-rank queries": ["q_a_proj"],
    "latent": ["kv_a_proj", "kv_b_proj"],
}
SETTINGS = {
    "softcap": ["attn_logit_softcapping"],
    "shared keys": ["num_kv_shared_layers"],
    "parallel residual": ["parallel_attn", "use_parallel_residual"],
    "clipped": ["clip_qkv"],
}


def _scheme(position):
    if isinstance(position, Alibi):
        return "alibi" if position.slopes.numel() & (position.slopes.numel() - 1) == 0 else "alibi, odd heads"
    if position is None or not position.rotates:
        return "no positions"
    return "rope neighbours" if position.pairing.spread is NEIGHBOURS.spread else "rope halves"


def _rope_types(model):
    types = [getattr(module, "rope_type", None) for module in model.modules()]
    for kind in types:
        yield from kind.values() if isinstance(kind, dict) else [kind] * (kind is not None)


def inverse_frequencies(rotary):
    return getattr(rotary.frequencies.holder, rotary.frequencies.inv_freq)
