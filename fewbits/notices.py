"""What of a model or its data leaves rounding little to go by: told in the report, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from fewbits.planning.model_info import LayerInfo
from fewbits.planning.plan import LayerPlan, Plan
from fewbits.planning.recipe import Assignment, Recipe
from fewbits.planning.stats import Stats

SHOWN = 3  # layers by name
FEW = 2  # samples


def notices(
    assigned: Sequence[Assignment],
    stats: Stats | None,
    weights: Callable[[str], np.ndarray],
    learns: bool,
) -> Iterator[str]:
    """In words, what is not as one would wish it, and what came of it.

    Args:
        assigned: what a recipe says of each layer.
        stats: what was observed; None without data.
        weights: gives a constant of the model by name.
        learns: codes are learned, and so not those to nearest.
    """
    nearest = "" if learns else ", to nearest"
    rounded = [a for a in assigned if a.weights is not None and not a.weights.is_float]
    uses = Counter(weight.name for a in rounded for weight in a.layer.weights)
    tied = [a.layer for a in rounded if any(uses[weight.name] > 1 for weight in a.layer.weights)]
    if tied:
        yield f"weights that several layers read are rounded once for all of them{nearest}: {_named(tied)}"
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
        yield (
            f"no calibration sample reaches these, whose weights are rounded all the same{nearest}: "
            f"{_named(unreached)}"
        )
    seen = [(layer, stats.tensors[layer.inputs[0]]) for layer in known if layer.inputs[0] in stats.tensors]
    zero = [layer for layer, one in seen if one.histogram.minimum == one.histogram.maximum == 0]
    if zero:
        yield f"these read nothing but zeros in every calibration sample, so no range is known: {_named(zero)}"


def unprotected(recipes: Iterable[Recipe]) -> Iterator[str]:
    """What is not as these recipes say, where there is no data."""
    for recipe in recipes:
        if recipe.protect:
            yield (
                f"recipe {recipe.name!r}: without data, weights that large activations meet are not protected; "
                "give --data"
            )


def remarks(plan: Plan) -> Iterator[str]:
    """The same of what a plan found when it rounded weights so that they make up for each other's errors."""
    found = [(layer, layer.evidence) for layer in plan.layers if layer.evidence is not None]
    for why in dict.fromkeys(one.unused for _, one in found if one.unused is not None):
        layers = [layer for layer, one in found if one.unused == why]
        yield f"weights do not make up for each other's errors where {why}: {_named(layers)}"
    damped = [layer for layer, one in found if one.damped]
    if damped:
        yield (
            "fewer rows of calibration data than inputs, or inputs that hang together, whose second moment is positive "
            f"definite only once it is damped: {_named(damped)}"
        )
    if silent := sum(one.silent for _, one in found):
        layers = [layer for layer, one in found if one.silent]
        yield (
            f"inputs that are zero in all that calibration kept of them, {silent} in all, say nothing of how their "
            f"weights are to be rounded: {_named(layers)}"
        )


def _dead(layer: LayerInfo, weights: Callable[[str], np.ndarray]) -> int:
    """How many channels of a depthwise convolution have only zeros for weights."""
    depthwise = layer.geometry is not None and 1 < layer.geometry.groups == layer.weights[0].shape[0]
    if not depthwise:
        return 0
    return int((~weights(layer.weights[0].name).reshape(layer.weights[0].shape[0], -1).any(axis=1)).sum())


def _named(layers: Sequence[LayerInfo | LayerPlan]) -> str:
    names = list(dict.fromkeys(layer.name for layer in layers))
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
