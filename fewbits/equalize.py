"""Which channels of a model are made larger or smaller before a recipe rounds it, so that rounding costs less."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fewbits.methods.equalization import Grid, Seen, find_equalization, grouped, seen_of
from fewbits.models.model import Model
from fewbits.numerics import find
from fewbits.planning.equalization import Link, Rescaling
from fewbits.planning.model_info import LayerInfo
from fewbits.planning.recipe import Assignment
from fewbits.planning.scheme import Scheme
from fewbits.planning.stats import Stats


def find_rescalings(
    model: Model, assigned: Iterable[Assignment], stats: Stats | None
) -> tuple[Rescaling, ...]:
    """What is worth rescaling, link by link; each is looked at as if the others stayed as they are.

    Args:
        model: in float.
        assigned: what a recipe says of each layer.
        stats: what was observed of the activations; None without data.
    """
    by_node = {a.layer.node: a for a in assigned}
    found = []
    for link in model.info.links:
        first, second = by_node[link.first], by_node[link.second]
        made, read = first.layer.weights[0], second.layer.weights[0]
        rows = _weight(model, first.layer).movedim(made.channel_axis, 0).flatten(1)
        columns = _weight(model, second.layer)
        if second.layer.kind == "linear":
            columns = columns.movedim(read.group_axis, 1)
        equalized = find_equalization(
            rows,
            grouped(columns, link.channels),
            _seen(link, second.layer, stats),
            _grid(first, second),
            link.shiftable,
        )
        if equalized is not None:
            divisor, shift = equalized.divisor.numpy(), equalized.shift.numpy()
            found.append(Rescaling(link, divisor, shift, equalized.gain))
    return tuple(found)


def _weight(model: Model, layer: LayerInfo) -> Tensor:
    return torch.from_numpy(model.weight(layer.weights[0].name))


def _seen(link: Link, layer: LayerInfo, stats: Stats | None) -> Seen | None:
    known = None if stats is None else stats.tensors.get(link.tensor)
    if known is None or known.examples is None or not known.finite:
        return None
    return seen_of(torch.from_numpy(known.examples), 1 if layer.kind == "conv" else -1)


def _grid(first: Assignment, second: Assignment) -> Grid:
    activations = second.activations
    return Grid(
        _codes(first.weights),
        _codes(second.weights),
        (_alone(first.weights), _alone(second.weights)),
        None if activations is None else float((1 << find(activations.qtype).bits) - 1),
    )


def _codes(scheme: Scheme | None) -> float | None:
    if scheme is None or scheme.is_float:
        return None
    return float((1 << (find(scheme.qtype).bits - 1)) - 1)


def _alone(scheme: Scheme | None) -> bool:
    return scheme is not None and scheme.per != "tensor"
