"""Attention sinks for Llama, written for clarity alone: what the library must compute, as slowly as one likes.

One stream, token by token. The un-rotated key and the value of every token are kept for ever. Each step lists the
keys its query sees and the place of each inside the cache, rotates all of them afresh, and attends. The model lends
its weights (projections, norms, MLP, embeddings); attention, rotation and caching are spelled out here.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


@dataclass
class NaiveOutput:
    """What `naive_stream` returns.

    Attributes
    ----------
    logits : Tensor [tokens, vocabulary]
    hidden_states : Tensor [layers + 1, tokens, hidden]
        The embeddings and each layer's output; the last entry has been through the final norm, as in Transformers.
    attentions : list of Tensor [layers, heads, keys the query sees]
        One entry per token; columns are the sinks, the window from oldest to newest, the token itself.
    """

    logits: torch.Tensor
    hidden_states: torch.Tensor
    attentions: list


def keys_seen(t, sinks, window):
    """Stream positions of the keys that the query at stream position t sees, and everyone's place in the cache.

    Returns
    -------
    keys : list of (stream position, cache position), oldest first
    query : int
        Cache position of the query.
    """
    evicted = max(0, t - (sinks + window))
    first = [(i, i) for i in range(min(sinks, t + 1))]
    recent = [(s, s - evicted) for s in range(max(sinks, t - window), t + 1)]
    return first + recent, t - evicted


def keys_seen_dense(t, call_start, sinks, window):
    """The same for dense prefill: everything cached before the call, then the call's own tokens up to t."""
    if call_start <= sinks + window:
        cached = list(range(call_start))
    else:
        cached = list(range(sinks)) + list(range(call_start - window, call_start))
    keys = cached + list(range(call_start, t + 1))
    return [(s, place) for place, s in enumerate(keys)], len(keys) - 1


def frequencies(config, length):
    """Rotary frequencies [head_dim / 2], and the factor on cos and sin, that Transformers uses for `length` tokens."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0
    return ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)


def rotate(x, positions, inv_freq, factor):
    """Rotate x [keys, heads, head_dim], key k to positions[k]: the pairs are (i, i + head_dim / 2)."""
    wide = torch.promote_types(inv_freq.dtype, x.dtype)
    angles = torch.tensor(positions, dtype=wide)[:, None] * inv_freq.to(wide)
    cos, sin = (factor * angles.cos())[:, None].to(x.dtype), (factor * angles.sin())[:, None].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def call_starts(calls):
    """For every token of a stream cut into calls of these lengths, the stream position its call starts at."""
    starts = []
    for length in calls:
        starts += [len(starts)] * length
    return starts


def naive_stream(
    model,
    ids,
    sinks,
    window,
    *,
    dense_calls=None,
    embeds=None,
    detach_before=0,
    query_offset=0,
    frozen_sinks=False,
    rounding=None,
):
    """Logits of one stream.

    Parameters
    ----------
    model : transformers.LlamaForCausalLM
        Without attention sinks; only its weights are used.
    ids : LongTensor [tokens]
    sinks, window : int
        S and W. A test that wants a wrong reference asks for W + 1 or S - 1.
    dense_calls : list of int, optional
        Lengths of the calls: gives the result of `attention_sink_prefill="dense"`.
    embeds : Tensor [tokens, hidden], optional
        In place of the embeddings of the ids.
    detach_before : int, default 0
        Keys and values of the tokens before this stream position pass no gradient, like those of an earlier call.
    query_offset : int, default 0
        Wrong on purpose: places every query this much too late.
    frozen_sinks : bool, default False
        Wrong on purpose: keys and queries keep their stream positions, so the sinks drift away.
    rounding : pair of callables, optional
        What rounds a key, which is rotated to its stream position before, and a value, once, when they are stored.
    """
    config, decoder = model.config, model.model
    groups = config.num_attention_heads // config.num_key_value_heads
    inv_freq, factor = frequencies(config, sinks + window + 1)
    starts = call_starts(dense_calls) if dense_calls else None
    past_keys = [[] for _ in decoder.layers]
    past_values = [[] for _ in decoder.layers]
    logits, states, attentions = [], [], []
    embeds = decoder.embed_tokens.weight[ids] if embeds is None else embeds
    for t in range(len(ids)):
        if starts:
            keys, query_place = keys_seen_dense(t, starts[t], sinks, window)
        else:
            keys, query_place = keys_seen(t, sinks, window)
        tokens, places = [s for s, _ in keys], [place for _, place in keys]
        if frozen_sinks:
            places, query_place = tokens, t
        hidden = embeds[t]
        hidden_per_layer, weights_per_layer = [hidden], []
        for layer, layer_keys, layer_values in zip(decoder.layers, past_keys, past_values, strict=True):
            x = layer.input_layernorm(hidden)
            query = layer.self_attn.q_proj(x).view(1, -1, config.head_dim)
            key = layer.self_attn.k_proj(x).view(-1, config.head_dim)
            value = layer.self_attn.v_proj(x).view(-1, config.head_dim)
            if rounding:
                key, value = rounding[0](rotate(key[None], [t], inv_freq, factor)[0]), rounding[1](value)
            layer_keys.append(key.detach() if t < detach_before else key)
            layer_values.append(value.detach() if t < detach_before else value)
            q = rotate(query, [query_place + query_offset], inv_freq, factor)[0]
            k = torch.stack([layer_keys[s] for s in tokens])
            if rounding:
                k = rotate(k, [place - s for s, place in zip(tokens, places, strict=True)], inv_freq, 1.0)
            else:
                k = rotate(k, places, inv_freq, factor)
            v = torch.stack([layer_values[s] for s in tokens])
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # one per query head
            weights = torch.softmax(torch.einsum("hd,khd->hk", q, k) * config.head_dim**-0.5, dim=-1)
            attended = torch.einsum("hk,khd->hd", weights, v).reshape(-1)
            hidden = hidden + layer.self_attn.o_proj(attended)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            hidden_per_layer.append(hidden)
            weights_per_layer.append(weights)
        hidden_per_layer[-1] = decoder.norm(hidden)
        logits.append(model.lm_head(hidden_per_layer[-1]) if hasattr(model, "lm_head") else hidden_per_layer[-1])
        states.append(torch.stack(hidden_per_layer))
        attentions.append(torch.stack(weights_per_layer))
    return NaiveOutput(torch.stack(logits), torch.stack(states, dim=1), attentions)


def naive_logits(model, ids, sinks, window, **options):
    """Logits [tokens, vocabulary] of one stream; the options are those of `naive_stream`."""
    with torch.no_grad():
        return naive_stream(model, ids, sinks, window, **options).logits
