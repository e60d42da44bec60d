"""A module's weights replaced by codes, as a recipe says."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.errors import InputError
from fewbits.methods.rounding import round_weight
from fewbits.modules.observe import Observed, static_products
from fewbits.modules.products import DynamicProducts, FloatProducts, Products
from fewbits.modules.recipes import suited
from fewbits.modules.survey import Place, Survey, survey
from fewbits.modules.weight import CodedWeight
from fewbits.numerics import QTensor
from fewbits.planning.model_info import WeightInfo
from fewbits.planning.recipe import Assignment, Recipe, assign

NEXT_TO_NOTHING = 2.0**-100  # any type of scales holds it
SHOWN = 3  # names of layers left in float for one reason
LEFT = "fewbits_left_in_float"  # a module's attribute: the names of what stays in float, and why


@dataclass(frozen=True)
class Rounded:
    """A module's weights as codes, rounded to nearest.

    Attributes:
        found: where they are.
        assigned: what the recipe says of each layer.
        codes: of weights, by name.
        left: names of what stays in float, and why.
    """

    found: Survey
    assigned: tuple[Assignment, ...]
    codes: Mapping[str, QTensor]
    left: Mapping[str, str]

    @property
    def infos(self) -> dict[str, WeightInfo]:
        """What is known of each weight that has codes, by name."""
        every = (weight for layer in self.found.info.layers for weight in layer.weights)
        return {weight.name: weight for weight in reversed([*every]) if weight.name in self.codes}


def converted(module: nn.Module, recipe: Recipe, observed: Mapping[str, Observed] | None = None) -> nn.Module:
    """A copy of a module whose weights are codes; what is not quantized is copied, the original left alone.

    Args:
        module: in float.
        recipe: which weights and activations are quantized, and how.
        observed: what meets each weight, by its name, for activations whose ranges are known in advance.

    Raises:
        InputError: see :func:`rounded`.
    """
    return assembled(module, rounded(module, recipe), observed=observed)


def rounded(module: nn.Module, recipe: Recipe) -> Rounded:
    """The weights of a module rounded to nearest.

    Raises:
        InputError: a module that cannot be quantized (see :func:`fewbits.modules.survey.survey`), a recipe that does
            not fit it, or NaN or infinity in a weight.
    """
    found = survey(module)
    if not found.info.layers and found.left:
        raise InputError(f"the module has nothing to quantize: {_why(found.left)}")
    assigned = assign(suited(recipe, found.info), found.info)
    left = dict(found.left)
    codes: dict[str, QTensor] = {}
    for a in assigned:
        if a.weights is None:
            left[a.layer.name] = "the recipe keeps it in float"
            continue
        for weight in a.layer.weights:
            if weight.name in codes:
                continue
            values = module.get_parameter(weight.name).detach()
            q = _silenced(round_weight(values, a.weights, weight.channel_axis, weight.name), values)
            if q.nbytes >= values.nbytes:
                left[weight.name] = "too small to gain anything"
                continue
            codes[weight.name] = q
    if not codes:
        raise InputError(f"recipe {recipe.name!r} leaves every layer of the module in float: {_why(left)}")
    return Rounded(found, assigned, codes, left)


def _silenced(q: QTensor, values: Tensor) -> QTensor:
    """The codes, with next to no step where all values that share it are zero: some formats have no level there."""
    if q.scale is None or bool(q.dequantize()[values == 0].eq(0).all()):
        return q
    silent = (q.layout.split(values) == 0).all(dim=-1).reshape(q.layout.parameter_shape)
    return replace(q, scale=torch.where(silent, torch.full_like(q.scale, NEXT_TO_NOTHING), q.scale))


def assembled(
    module: nn.Module,
    plan: Rounded,
    floats: Mapping[str, Tensor] | None = None,
    observed: Mapping[str, Observed] | None = None,
) -> nn.Module:
    """A copy of a module with codes for weights, and other numbers in parameters and buffers by name."""
    coded = {}
    for name, q in plan.codes.items():
        products = _products(name, plan.assigned, observed or {})
        coded[name] = CodedWeight.of(q, module.get_parameter(name).dtype, products)
    result = _copied(module, plan.found, coded)
    held = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, value in (floats or {}).items():
            held[name].copy_(value)
    setattr(result, LEFT, dict(plan.left))
    return result


def _products(name: str, assigned: Sequence[Assignment], observed: Mapping[str, Observed]) -> Products:
    """How a weight is multiplied: as the first layer that reads it and has activations to quantize says."""
    readers = [a for a in assigned if any(weight.name == name for weight in a.layer.weights)]
    activations = next((a.activations for a in readers if a.activations is not None), None)
    if activations is None:
        return FloatProducts()
    if activations.dynamic:
        return DynamicProducts()
    return static_products(activations, observed[name]) if name in observed else FloatProducts()


def _copied(module: nn.Module, found: Survey, coded: Mapping[str, CodedWeight]) -> nn.Module:
    """A copy with codes in all places of each coded weight; the float weights they were made from are not copied."""
    floats = [module.get_parameter(name) for name in coded]
    shared: dict[int, Any] = {id(parameter): parameter for parameter in floats}
    result = copy.deepcopy(module, shared)
    for name, weight in coded.items():
        for place in found.places[name]:
            put(result, place, weight)
    return result


def put(module: nn.Module, place: Place, weight: CodedWeight) -> None:
    """Let codes stand where a parameter stood."""
    owner = module.get_submodule(place.owner)
    del owner._parameters[place.attribute]
    owner._modules[place.attribute] = weight
    refresh(owner)


def refresh(layer: nn.Module) -> None:
    """Tell a layer that its weights are others now; recurrent ones keep a list of theirs."""
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()


def _why(left: Mapping[str, str]) -> str:
    reasons = {why: [name for name in left if left[name] == why] for why in left.values()}
    return "; ".join(f"{', '.join(names[:SHOWN])}: {why}" for why, names in reasons.items())
