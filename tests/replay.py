"""Attention sinks by plain Transformers alone: what any architecture must compute, without a line of its arithmetic.

The keys and values of a layer depend on nothing but that layer's inputs for the tokens its query sees. So the output of
layer i for the token at stream position t is what the plain model gives for the last token of the short text
[sinks, window, t], read afresh at positions 0, 1, 2 …, when every layer up to i is handed the inputs its tokens had in
the stream. Layer by layer, all tokens t at once as rows of a batch. Layers that are left as they were trained (natively
sliding, linear) read the whole stream instead.
"""

from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import get_layer_types_and_kwargs


def replay_logits(model, ids, sinks, window):
    """Logits [tokens, vocabulary] of the stream `ids` [tokens] through the plain model `model`, S = sinks, W = window."""
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
    return inputs[len(layers)][0]


def _read(model, layers, ids, texts, inputs, index):
    """Read `texts` (stream positions of their tokens); returns what follows layer `index`: next inputs, or logits."""
    tokens, caught = torch.tensor(texts), {}

    def hand_in(layer):
        def hook(module, args, kwargs):
            if layer == index + 1:
                caught["inputs"] = (args[0] if args else kwargs["hidden_states"]).clone()
            if layer > index or layer == 0:
                return None
            states = inputs[layer].squeeze(-3)[..., tokens, :]
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        return hook

    with _hooked(layers, hand_in):
        logits = model(ids[tokens], use_cache=False).logits
    return caught["inputs"] if index + 1 < len(layers) else logits


@contextmanager
def _hooked(layers, hook_of):
    handles = [layer.register_forward_pre_hook(hook_of(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def text_config(model):
    return model.config.get_text_config(decoder=True)


def decoder_layers(model):
    """The decoder's layers, in order."""
    count = text_config(model).num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(found for found in lists if any(hasattr(part, "layer_idx") for part in found[0].modules()))


def layers_that_see_all(model):
    """For each layer whether it reads the stream as it was trained to; where all slide, none does."""
    types, _ = get_layer_types_and_kwargs(text_config(model))
    native = [kind != "full_attention" for kind in types]
    return [False] * len(types) if set(types) == {"sliding_attention"} else native
