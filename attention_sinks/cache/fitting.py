"""Whether the tensors of a file are those that the cache of this model would hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from .layer import Layer
from .sink_layer import SinkLayer

Heads = tuple[int, int, int]
"""The heads of a layer's keys and values, and how many elements of a buffer each head has of keys and of values."""

CURE = "use the model it was saved with, or an intact copy."


def check_tensors(
    layers: Sequence[Layer], model: PreTrainedModel, tensors: dict[str, torch.Tensor], batch_size: int | None
) -> None:
    """Raise ValueError unless `tensors` are those of `layers` for `batch_size` rows, None before the first call.

    Their names and shapes follow from the layers and the batch. Heads and their sizes follow from the projections of
    the model where it has them; elsewhere, layers that see the same have the same.
    """
    sinks = {index: layer for index, layer in enumerate(layers) if isinstance(layer, SinkLayer) and batch_size}
    names = {index: [f"layers.{index}.{number}" for number in range(3)] for index in sinks}
    if strange := sorted({*tensors} ^ {name for own in names.values() for name in own}):
        raise ValueError(f"lacks a tensor or has one too many, {strange[0]!r:.80}; {CURE}")
    if batch_size == 0:
        raise ValueError(f"holds a cache of no rows; {CURE}")
    projected = _projected(model)
    alike: dict[object, Heads] = {}
    for index, layer in sinks.items():
        keys, values, first = (tensors[name] for name in names[index])
        heads = _checked_heads(index, layer, (keys, values, first), batch_size or 0)
        _check_projections(index, layer, heads, projected.get(index))
        known = (type(layer), layer.reach) if index not in projected else index
        if alike.setdefault(known, heads) != heads:
            raise ValueError(f"holds other heads in layer {index} than in layers like it; {CURE}")
    rounded = any(layer.precision for layer in sinks.values())
    in_own_dtype = [own[2:] if rounded else own[:2] for own in names.values()]  # sinks, or keys and values
    _check_dtypes({tuple(tensors[name].dtype for name in own) for own in in_own_dtype}, model)


def _checked_heads(index: int, layer: SinkLayer, tensors: Sequence[torch.Tensor], batch_size: int) -> Heads:
    """Return the heads of a layer whose keys, values and sinks fit each other and the batch; else raise ValueError."""
    keys, values, first = tensors
    if all(tensor.dim() == 4 for tensor in tensors):
        size, part = layer.reach.visible_size, layer.rotated_part(keys, values)
        fits = (
            keys.shape[:3] == values.shape[:3] == (batch_size, keys.shape[1], size)
            and first.shape[:3] == (*part.shape[:2], layer.kept_sinks)
            and _forms_fit(layer, tensors)
            and keys.numel()
            and values.numel()
        )
        if fits:
            return keys.shape[1], keys.shape[3], values.shape[3]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    raise ValueError(
        f"holds keys, values and sinks {shapes} in layer {index}, which are not those of {batch_size} rows with "
        f"{layer.reach.visible_size} slots; {CURE}"
    )


def _forms_fit(layer: SinkLayer, tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether sinks are like the rotated part of keys and values, which have the forms that the layer keeps."""
    keys, values, first = tensors
    part = layer.rotated_part(keys, values)
    if layer.precision is None:
        return first.shape[3] == part.shape[3] and first.dtype == part.dtype
    form = layer.part_form
    try:
        fits = form.row(first.shape[3]) == part.shape[3]
    except ValueError:
        return False
    return fits and (keys.dtype, values.dtype) == tuple(form.dtype for form in layer.precision)


def _projected(model: PreTrainedModel) -> dict[int, tuple[int, int, int]]:
    """Return the size of a head of keys, and all numbers of a token's keys and values, for each layer that tells."""
    known = {}
    for module in model.modules():
        index = module.__dict__.get("layer_idx")  # a plain attribute, of a few modules among many
        if not isinstance(index, int):
            continue
        size = getattr(module, "head_dim", None)
        keys, values = (_width(getattr(module, name, None)) for name in ("k_proj", "v_proj"))
        if isinstance(size, int) and keys is not None and values is not None:
            known[index] = size, keys, values
    return known


def _width(projection: nn.Module | None) -> int | None:
    """Return how many numbers a projection makes of a token, in this process; None where it does not say."""
    to_local = getattr(getattr(projection, "weight", None), "to_local", None)  # of a distributed tensor
    width = getattr(projection, "out_features", None) if to_local is None else to_local().shape[0]
    return width if isinstance(width, int) else None


def _check_projections(index: int, layer: SinkLayer, heads: Heads, projected: tuple[int, int, int] | None) -> None:
    """Raise ValueError unless the layer at `index` has these heads."""
    if projected is None:
        return
    size, keys, values = projected
    sizes = [size, values // heads[0]]
    if layer.precision is not None:
        sizes = [form.row(own) for form, own in zip(layer.precision, sizes, strict=True)]
    if (heads[0] * size, heads[0] * (values // heads[0])) != (keys, values) or list(heads[1:]) != sizes:
        raise ValueError(
            f"holds {heads[0]} heads of {heads[1]} and {heads[2]} elements in layer {index}, but this model's have "
            f"{keys} and {values} in all, {size} for a head; {CURE}"
        )


def _check_dtypes(dtypes: set[tuple[torch.dtype, ...]], model: PreTrainedModel) -> None:
    """Raise ValueError unless all layers have the same dtypes, which the model may have made."""
    own = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    own |= {torch.float32}  # in which some models rotate
    own |= {torch.float16, torch.bfloat16} if own == {torch.float32} else set()  # autocast
    if len(dtypes) > 1 or not {dtype for both in dtypes for dtype in both} <= own:
        raise ValueError(f"holds keys and values of dtypes that this model has not made, {dtypes}; {CURE}")
