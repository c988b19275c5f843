"""BTLM and JAIS written out from their formulae on plain tensors: no module, no cache, one text at a time.

Blocks of GPT-2 with pre-norms: x + attention(ln_1 x), then x + mlp(ln_2 x); weights of projections are [in, out].
ALiBi (arXiv 2108.12409): head h adds -m_h |i - j| to its scaled scores. SwiGLU: (x A + a) silu(x B + b). muP
(arXiv 2309.11568): embeddings times one scale, scores over the head's width, logits times another scale.
"""

import math

import torch


def slopes(heads):
    """m_h = 2^(-8h/n), h = 1..n, for n a power of two; else interleaved from the two nearest powers."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[::2][: heads - below]


def affine(x, state, name):
    return x @ state[f"{name}.weight"] + state[f"{name}.bias"]


def normed(x, state, name, eps):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def silu(x):
    return x / (1 + (-x).exp())


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, state, prefix, layer, facts):
    tokens, width = x.shape
    heads, size = facts["n_head"], width // facts["n_head"]
    query, key, value = affine(x, state, f"{prefix}.c_attn").split(width, dim=-1)
    divisor = size if facts["scores_over_width"] else math.sqrt(size)
    if not facts.get("scale_attn_weights", True):
        divisor = 1
    if facts.get("scale_attn_by_inverse_layer_idx"):
        divisor *= layer + 1
    outputs = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = query[:, part] @ key[:, part].T / divisor
        for i in range(tokens):
            for j in range(tokens):
                scores[i, j] += -slopes(heads)[h] / facts.get("alibi_factor", 1) * (i - j) if j <= i else -math.inf
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        outputs.append(weights @ value[:, part])
    return affine(torch.cat(outputs, dim=-1), state, f"{prefix}.c_proj")


def mlp(x, state, prefix, facts):
    inner = affine(x, state, f"{prefix}.c_fc")
    if facts.get("activation_function", "swiglu") == "swiglu":
        inner = inner * silu(affine(x, state, f"{prefix}.c_fc2"))
    else:
        inner = gelu_tanh(inner)
    return affine(inner, state, f"{prefix}.c_proj")


def logits_by_formula(state, ids, facts):
    """Logits [tokens, vocabulary] of `ids` [tokens].

    `facts` holds n_head, n_layer, eps, embeddings_scale, logits_scale, scores_over_width and, where they matter,
    scale_attn_weights, scale_attn_by_inverse_layer_idx, activation_function, alibi_factor.
    """
    state = {name: tensor.double() for name, tensor in state.items()}
    eps = facts["eps"]
    x = state["transformer.wte.weight"][ids] * facts["embeddings_scale"]
    for layer in range(facts["n_layer"]):
        prefix = f"transformer.h.{layer}"
        x = x + attention(normed(x, state, f"{prefix}.ln_1", eps), state, f"{prefix}.attn", layer, facts)
        x = x + mlp(normed(x, state, f"{prefix}.ln_2", eps), state, f"{prefix}.mlp", facts)
    x = normed(x, state, "transformer.ln_f", eps)
    return (x @ state["transformer.wte.weight"].T * facts["logits_scale"]).float()
