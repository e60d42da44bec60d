"""What of a module, its recipe or its data leaves rounding little to go by, and what came of it: in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fewbits.modules.batch_norm import Reestimated
from fewbits.modules.compensate import Met
from fewbits.modules.convert import Rounded
from fewbits.modules.running import Call, samples_of
from fewbits.planning.recipe import Recipe

SHOWN = 3  # weights by name


def of_recipe(recipe: Recipe, has_data: bool) -> Iterator[str]:
    """What of a recipe does nothing to a module in place."""
    for switch in ("smooth", "protect", "equalize"):
        if getattr(recipe, switch):
            yield (
                f"the recipe's {switch} was not applied: it moves factors between layers, for which a module in place "
                "has no room; fb.compress(module, data, recipe=...) does it"
            )
    if has_data and not (recipe.compensate or recipe.learn or recipe.correct):
        yield "the data was not used: the recipe neither compensates nor learns nor corrects"


def of_module(module: nn.Module, plan: Rounded) -> Iterator[str]:
    """What can be told without data.

    Args:
        module: in float.
        plan: what becomes codes.
    """
    uses = [weight.name for layer in plan.found.info.layers for weight in layer.weights]
    tied = [name for name in plan.codes if len(plan.found.places[name]) > 1 or uses.count(name) > 1]
    if tied:
        yield f"weights that several layers read are rounded once, for all of them: {_named(tied)}"
    dead = {name: count for name in plan.codes if (count := _dead(module, name))}
    if dead:
        yield (
            f"channels of depthwise layers whose weights are all zero, {sum(dead.values())} in all, stay zero: "
            f"{_named(dead)}"
        )


def of_data(plan: Rounded, given: Sequence[Call], met: Met) -> Iterator[str]:
    """What rounding against data found of it.

    Args:
        plan: what becomes codes.
        given: the data.
        met: what was found.
    """
    if len(given) == 1 and samples_of(given[0]) == 1:
        yield "calibrated on a single sample: roundings know no other; give more data"
    kinds = {
        weight.name: layer.kind for layer in reversed(plan.found.info.layers) for weight in layer.weights
    }
    open_ = [name for name in plan.codes if name not in met.by and kinds[name] != "embedding"]
    known = [name for name in open_ if kinds[name] in ("linear", "conv")]
    nearest = "whose weights are rounded to nearest"
    reasons = {
        f"no calibration sample reaches these, {nearest}": [one for one in known if one not in met.reached],
        f"these read nothing but zeros in every calibration sample, {nearest}": met.zeros,
        f"these read NaN or infinity for some of the data, {nearest}": met.broken,
        "inputs that hang together or are few, whose second moment is positive definite only once it is damped": (
            met.dependent
        ),
        f"codes whose zero moves, or narrow floats, cannot make up for each other, {nearest}": met.plain,
        f"rounding against data knows linear layers and convolutions of one or two axes, not these, {nearest}": [
            one for one in open_ if one not in known or one in met.reached
        ],
    }
    for why, names in reasons.items():
        if names:
            yield f"{why}: {_named(names)}"


def of_norms(found: Reestimated | None) -> Iterator[str]:
    """How estimating the statistics of batch norms anew went."""
    if found is None:
        return
    if found.after is None:
        yield "statistics of batch norms stay: a call of the data has a single value for a channel"
    elif not found:
        yield "statistics of batch norms stay: estimated on the rounded weights, outputs are no closer"
    else:
        closer = 10 * math.log10(found.before / max(found.after, 1e-30))
        yield (
            f"statistics of {found.norms} batch norms were estimated anew on the rounded weights: outputs are "
            f"{closer:.1f} dB closer on the data"
        )


def _dead(module: nn.Module, name: str) -> int:
    """How many channels of a depthwise convolution have only zeros for weights."""
    owner = module.get_submodule(name.rpartition(".")[0])
    if not isinstance(owner, _ConvNd) or not 1 < owner.groups == len(owner.weight):
        return 0
    return int((~owner.weight.detach().flatten(1).any(dim=1)).sum())


def _named(names: Sequence[str] | dict[str, int]) -> str:
    every = [name.removesuffix(".weight") for name in names]
    more = f", and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
