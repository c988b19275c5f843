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
            first, room = (0, units.own_room or len(ids)) if sees_all else (sinks, 0)
            room = max(room, sinks + window + 1)
            read = _read(model, units, ids, [list(range(min(room, len(ids))))], stream)
            if room < len(ids):
                texts = [[*range(first), *range(t + 1 - room + first, t + 1)] for t in range(room, len(ids))]
                later = _read(model, units, ids, texts, stream)
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


def _read(model, units, ids, texts, stream):
    """Read `texts` (stream positions of their tokens) through the next unit: what it gives, and what follows it.

    What follows are the inputs of the unit after it, or the logits.
    """
    tokens, caught, unit = torch.tensor(texts), {}, len(stream.outputs)
    begun, ended = iter(units.begin), count()

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
        number = next(ended)
        if number == unit:
            caught["output"] = _given(module, output).clone()
        return _replaced(module, output, at(stream.outputs[number])) if number < unit else None

    with _hooked(units.modules, before, after):
        logits = model(ids[tokens], use_cache=False).logits
    return [caught["output"], caught.get("following", logits)]


def _given(module, output):
    """What `module` gave for each token, [..., tokens, hidden]: queries, keys and values in one where it made those."""
    if _projects(module):
        return torch.cat([states.flatten(-2) for states in output], dim=-1)
    return output[0] if isinstance(output, tuple) else output


def _replaced(module, output, given):
    """`output` with what `_given` took from it replaced."""
    if _projects(module):
        parts = given.split([states.shape[-2] * states.shape[-1] for states in output], dim=-1)
        return tuple(part.reshape(states.shape) for part, states in zip(parts, output, strict=True))
    return (given, *output[1:]) if isinstance(output, tuple) else given


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
    """What mixes tokens, in the order it is done: one that runs inside another comes before it.

    Attributes
    ----------
    modules : list of nn.Module
        Each of them once, even if it serves several layers.
    see_all : list of bool
        For each unit, whether it reads the stream as it was trained to.
    begin : list of int
        The numbers of the units, in the order they begin.
    own_room : int, optional
        The tokens that sliding units see, where they know their places and not only distances: they read the last
        tokens afresh then, as many as that or as all others read.
    """

    modules: list
    see_all: list
    begin: list
    own_room: int | None = None


def mixing_units(model):
    """The decoder's layers; what is inside them where a layer runs in several loops, has several parts that mix tokens
    or hands on several residual streams."""
    config, layers = text_config(model), decoder_layers(model)
    names, loops = layer_names(config), hasattr(config, "n_recurrent_loops")
    if len(layers) == len(names) and not HYBRID & set(names) and not hasattr(layers[0], "attn_hc") and not loops:
        see_all = [name not in names_with_sinks(names) for name in names]
        return Units(layers, see_all, list(range(len(names))))
    return _parts_in_order(model, sliding_has_sinks="hybrid_sliding" in names_with_sinks(names))


HYBRID = {"hybrid", "hybrid_sliding"}


def names_with_sinks(names):
    """Which layers get the sinks: where all attention slides, the sliding ones."""
    full = {"full_attention", "indexed_attention", "deepseek_sparse_attention", "hybrid"}
    return full if {*full, "chunked_attention"} & set(names) else {"sliding_attention", "hybrid_sliding"}


def _parts_in_order(model, sliding_has_sinks):
    """Attention, mixers and projections with states, found by running the model once."""
    parts = [part for part in model.modules() if hasattr(part, "layer_idx") and _mixes(part)]
    begun, done, running = [], [], []

    def before(module, args, kwargs):
        running.append(len(begun))
        begun.append(module)

    def after(module, args, output):
        done.append(running.pop())

    with _hooked(parts, before, after), torch.no_grad():
        model(torch.zeros(1, 2, dtype=torch.long), use_cache=False)

    def sees_all(part):
        slides = getattr(part, "sliding_window", None) is not None and not sliding_has_sinks
        return slides or not hasattr(part, "o_proj")

    own_rooms = {part.sliding_window for part in parts if _knows_its_place(part) and part.sliding_window}
    see_all, begin = [sees_all(begun[run]) for run in done], [done.index(run) for run in range(len(begun))]
    return Units(parts, see_all, begin, max(own_rooms, default=None))


def _mixes(part):
    return hasattr(part, "o_proj") or hasattr(part, "out_proj") or _projects(part)


def _knows_its_place(part):
    """Whether its queries are weighed in each dimension after they have been rotated."""
    return hasattr(part, "sqk")


def _projects(part):
    """Whether it makes queries, keys and values of several tokens each, by convolutions, inside of attention."""
    return hasattr(part, "conv_qk_grouped")


def decoder_layers(model):
    """The decoder's layers; its attention modules where they are not the layers the config counts."""
    number = text_config(model).num_hidden_layers
    for found in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        if len(found) == number and any(hasattr(part, "layer_idx") for part in found.modules()):
            return list(found)
    return [part for part in model.modules() if hasattr(part, "layer_idx") and hasattr(part, "o_proj")]


def text_config(model):
    return model.config.get_text_config(decoder=True)


def layer_names(config):
    """What the config calls its layers, or what Transformers takes them for."""
    if "recurrent" in (blocks := getattr(config, "layers_block_type", ())):  # RecurrentGemma in older releases
        return [{"recurrent": "linear_attention", "attention": "sliding_attention"}[name] for name in blocks]
    slides = getattr(config, "sliding_window", None) is not None
    names = getattr(config, "layer_types", None)
    return list(names or ["sliding_attention" if slides else "full_attention"] * config.num_hidden_layers)
