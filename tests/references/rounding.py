"""What a cache of each dtype makes of a key or a value, written for clarity alone."""

from math import gcd

import torch


def to_dtype(dtype):
    return lambda states: states.to(dtype).to(states.dtype)


def to_whole_numbers(bits):
    """Each group of numbers on a grid of 2**bits points, whose first point and distance are in float16."""

    def rounded(states):
        groups = states.reshape(*states.shape[:-1], -1, gcd(states.shape[-1], 32))
        first = groups.min(dim=-1, keepdim=True).values.half().to(states.dtype)
        distance = ((groups.max(dim=-1, keepdim=True).values - first) / (2**bits - 1)).half().to(states.dtype)
        points = ((groups - first) / distance.where(distance != 0, torch.ones_like(distance))).round()
        return (first + points.clamp(0, 2**bits - 1) * distance).reshape(states.shape)

    return rounded


def straight_through(rounded):
    """The same with the gradient of what does not round."""
    return lambda states: states + (rounded(states.detach()) - states).detach()


ROUNDINGS = {
    "float16": (to_dtype(torch.float16),) * 2,
    "bfloat16": (to_dtype(torch.bfloat16),) * 2,
    "int8": (to_whole_numbers(8),) * 2,
    "int8-int4": (to_whole_numbers(8), to_whole_numbers(4)),
}
"""The roundings of keys and of values, by `attention_sink_cache_dtype`."""
