"""Attention sinks by plain Transformers alone: what any architecture must compute, without a line of its arithmetic.

The keys and values of a layer depend on nothing but that layer's inputs for the tokens its query sees. So the output of
layer i for the token at stream position t is what the plain model gives for the last token of the short text
[sinks, window, t], read afresh at positions 0, 1, 2 …, when every layer up to i is handed the inputs its tokens had in
the stream. Layer by layer, all tokens t at once as rows of a batch. Layers that are left as they were trained (natively
sliding, linear) read the whole stream instead.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn


def replay_logits(model, ids, sinks, window):
    """Logits [tokens, vocabulary] of the stream `ids` [tokens] through a plain model; S = sinks, W = window."""
    units = mixing_units(model)
    stream = Stream([], [])
    with torch.no_grad():
        for sees_all in units.see_all:
            room = len(ids) if sees_all else sinks + window + 1
            read = _read(model, units.modules, ids, [list(range(min(room, len(ids))))], stream)
            if room < len(ids):
                texts = [[*range(sinks), *range(t - window, t + 1)] for t in range(room, len(ids))]
                later = _read(model, units.modules, ids, texts, stream)
                last = (states[..., -1:, :].transpose(-3, -2) for states in later)
                read = [torch.cat(parts, dim=-2) for parts in zip(read, last, strict=True)]
            output, following = read
            stream.outputs.append(output)
            stream.inputs.append(following)
    return following[0]


@dataclass(frozen=True)
class Stream:
    """What is known of every token of the stream.

    Attributes
    ----------
    outputs : list of Tensor [..., 1, tokens, hidden]
        What each unit gave.
    inputs : list of Tensor [..., 1, tokens, hidden]
        What each unit after the first was given.
    """

    outputs: list
    inputs: list


def _read(model, modules, ids, texts, stream):
    """Read `texts` (stream positions of their tokens) through the next unit: what it gives, and what follows it.

    What follows are the inputs of the unit after it, or the logits.
    """
    tokens, caught, unit = torch.tensor(texts), {}, len(stream.outputs)
    begun, ended = count(), count()

    def at(states):
        return states.squeeze(-3)[..., tokens, :]

    def before(module, args, kwargs):
        number = next(begun)  # a module may serve several layers
        if number == unit + 1:
            caught["following"] = (args[0] if args else kwargs["hidden_states"]).clone()
        if not 0 < number <= unit:
            return None
        states = at(stream.inputs[number - 1])
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def after(module, args, output):
        number, several = next(ended), isinstance(output, tuple)
        if number == unit:
            caught["output"] = (output[0] if several else output).clone()
        if number >= unit:
            return None
        states = at(stream.outputs[number])
        return (states, *output[1:]) if several else states

    with _hooked(modules, before, after):
        logits = model(ids[tokens], use_cache=False).logits
    return [caught["output"], caught.get("following", logits)]


@contextmanager
def _hooked(modules, before, after=None):
    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules if after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Units:
    """What mixes tokens, in the order it runs.

    Attributes
    ----------
    modules : list of nn.Module
        Each of them once, even if it serves several layers.
    see_all : list of bool
        For each time one runs, whether it reads the stream as it was trained to.
    """

    modules: list
    see_all: list


def mixing_units(model):
    """The decoder's layers; what is inside them where a layer has several parts that mix tokens."""
    names = layer_names(text_config(model))
    with_sinks = {"full_attention", "hybrid"}
    if not {*with_sinks, "chunked_attention"} & set(names):  # where all attention slides, sliding layers get the sinks
        with_sinks = {"sliding_attention", "hybrid_sliding"}
    see_all = [name not in with_sinks for name in names]
    layers = decoder_layers(model)
    if len(layers) == len(names) and "hybrid" not in names:
        return Units(layers, see_all)
    return Units(*_parts_in_order(model))


def _parts_in_order(model):
    """Attention and mixers, found by running the model once."""
    parts = [part for part in model.modules() if hasattr(part, "layer_idx") and _mixes(part)]
    order = []
    with _hooked(parts, lambda module, args, kwargs: order.append(module)), torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    return parts, [not hasattr(part, "o_proj") for part in order]


def _mixes(part):
    return hasattr(part, "o_proj") or hasattr(part, "out_proj")


def decoder_layers(model):
    """The decoder's layers; its attention modules where they are not the layers the config counts."""
    number = text_config(model).num_hidden_layers
    for found in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        if len(found) == number and any(hasattr(part, "layer_idx") for part in found[0].modules()):
            return list(found)
    return [part for part in model.modules() if hasattr(part, "layer_idx") and hasattr(part, "o_proj")]


def text_config(model):
    return model.config.get_text_config(decoder=True)


def layer_names(config):
    """What the config calls its layers, or what Transformers takes them for."""
    slides = getattr(config, "sliding_window", None) is not None
    names = getattr(config, "layer_types", None)
    return list(names or ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers)
