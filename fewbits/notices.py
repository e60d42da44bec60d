"""What of a model or its data leaves rounding little to go by: told in the report, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fewbits.planning.model_info import LayerInfo
from fewbits.planning.recipe import Assignment
from fewbits.planning.stats import Stats

SHOWN = 3  # layers by name
FEW = 2  # samples


def notices(
    assigned: Sequence[Assignment], stats: Stats | None, weights: Callable[[str], np.ndarray]
) -> Iterator[str]:
    """In words, what is not as one would wish it, and what came of it.

    Args:
        assigned: what a recipe says of each layer.
        stats: what was observed; None without data.
        weights: gives a constant of the model by name.
    """
    rounded = [a for a in assigned if a.weights is not None and not a.weights.is_float]
    uses = Counter(weight.name for a in rounded for weight in a.layer.weights)
    tied = [a.layer for a in rounded if any(uses[weight.name] > 1 for weight in a.layer.weights)]
    if tied:
        yield f"weights that several layers read are rounded once, to nearest, for all of them: {_named(tied)}"
    dead = {a.layer.name: count for a in rounded if (count := _dead(a.layer, weights))}
    if dead:
        layers = [a.layer for a in rounded if a.layer.name in dead]
        yield (
            f"channels of depthwise layers whose weights are all zero, {sum(dead.values())} in all, stay zero: "
            f"{_named(layers)}"
        )
    if stats is None:
        return
    if stats.samples < FEW:
        yield "calibrated on a single sample: ranges and roundings know no other; give more data"
    plain = [a.layer for a in rounded if a.layer.inside is None and a.layer.kind in ("conv", "linear")]
    known = [layer for layer in plain if layer.inputs]
    unreached = [layer for layer in known if layer.inputs[0] not in stats.tensors]
    if unreached:
        yield f"no calibration sample reaches these, whose weights are rounded to nearest: {_named(unreached)}"
    seen = [(layer, stats.tensors[layer.inputs[0]]) for layer in known if layer.inputs[0] in stats.tensors]
    zero = [layer for layer, one in seen if one.histogram.minimum == one.histogram.maximum == 0]
    if zero:
        yield f"these read nothing but zeros in every calibration sample, so no range is known: {_named(zero)}"
    short = [
        layer
        for layer, one in seen
        if layer.kind == "linear" and one.examples is not None and len(one.examples) < _columns(layer)
    ]
    if short:
        yield (
            "fewer rows of calibration data than inputs, whose second moment is positive definite only once it is "
            f"damped: {_named(short)}"
        )


def _columns(layer: LayerInfo) -> int:
    return layer.weights[0].shape[layer.weights[0].group_axis]


def _dead(layer: LayerInfo, weights: Callable[[str], np.ndarray]) -> int:
    """How many channels of a depthwise convolution have only zeros for weights."""
    depthwise = layer.geometry is not None and 1 < layer.geometry.groups == layer.weights[0].shape[0]
    if not depthwise:
        return 0
    return int((~weights(layer.weights[0].name).reshape(layer.weights[0].shape[0], -1).any(axis=1)).sum())


def _named(layers: Sequence[LayerInfo]) -> str:
    names = list(dict.fromkeys(layer.name for layer in layers))
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
