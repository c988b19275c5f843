"""Attention sinks by plain Transformers alone: what any architecture must compute, without a line of its arithmetic.

The keys and values of a layer depend on nothing but that layer's inputs for the tokens its query sees. So the output of
layer i for the token at stream position t is what the plain model gives for the last token of the short text
[sinks, window, t], read afresh at positions 0, 1, 2 …, when every layer up to i is handed the inputs its tokens had in
the stream. Layer by layer, all tokens t at once as rows of a batch. Layers that are left as they were trained (natively
sliding, linear) read the whole stream instead.
"""

from contextlib import contextmanager
from itertools import count

import torch
from torch import nn


def replay_logits(model, ids, sinks, window):
    """Logits [tokens, vocabulary] of the stream `ids` [tokens] through a plain model; S = sinks, W = window."""
    layers = decoder_layers(model)
    inputs = {}  # layer index -> [..., 1, tokens, hidden], what the layer was given for every token of the stream
    with torch.no_grad():
        for index, sees_all in enumerate(layers_that_see_all(model)):
            room = len(ids) if sees_all else sinks + window + 1
            result = _read(model, layers, ids, [list(range(min(room, len(ids))))], inputs, index)
            if room < len(ids):
                texts = [[*range(sinks), *range(t - window, t + 1)] for t in range(room, len(ids))]
                later = _read(model, layers, ids, texts, inputs, index)
                result = torch.cat([result, later[..., -1:, :].transpose(-3, -2)], dim=-2)
            inputs[index + 1] = result
    return inputs[index + 1][0]


def _read(model, layers, ids, texts, inputs, index):
    """Read `texts` (stream positions of their tokens); returns what follows layer `index`: next inputs, or logits."""
    tokens, caught = torch.tensor(texts), {}

    calls = count()

    def hook(module, args, kwargs):
        layer = next(calls)  # a module may serve several layers
        if layer == index + 1:
            caught["inputs"] = (args[0] if args else kwargs["hidden_states"]).clone()
        if layer > index or layer == 0:
            return None
        states = inputs[layer].squeeze(-3)[..., tokens, :]
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    with _hooked(layers, hook):
        logits = model(ids[tokens], use_cache=False).logits
    return caught.get("inputs", logits)


@contextmanager
def _hooked(layers, hook):
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def text_config(model):
    return model.config.get_text_config(decoder=True)


def decoder_layers(model):
    """The decoder's layers; its attention modules where they are not the layers the config counts."""
    number = text_config(model).num_hidden_layers
    for found in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        if len(found) == number and any(hasattr(part, "layer_idx") for part in found[0].modules()):
            return list(found)
    return [part for part in model.modules() if hasattr(part, "layer_idx") and hasattr(part, "o_proj")]


def layer_names(config):
    """What the config calls its layers, or what Transformers takes them for."""
    slides = getattr(config, "sliding_window", None) is not None
    names = getattr(config, "layer_types", None)
    return list(names or ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers)


def layers_that_see_all(model):
    """For each layer whether it reads the stream as it was trained to; where all attention slides, none does."""
    names = layer_names(text_config(model))
    with_sinks = ["full_attention", "hybrid"]
    if not {*with_sinks, "chunked_attention"} & set(names):
        with_sinks = ["sliding_attention", "hybrid_sliding"]
    return [name not in with_sinks for name in names]
