"""What a module is made of, as planning sees it: its layers, where their weights are, and what stays in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fewbits.errors import InputError
from fewbits.modules.functional import Call, calls, own_parameters
from fewbits.modules.kinds import Kind, Part, kind_of
from fewbits.modules.weight import CodedWeight
from fewbits.planning.model_info import LayerInfo, ModelInfo, WeightInfo

NO_PRODUCT = "not used in a product that has codes"


@dataclass(frozen=True)
class Place:
    """Where a weight is: the path of the module that holds it, and its name there."""

    owner: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.attribute}" if self.owner else self.attribute


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        info: the layers, for planning.
        places: of each weight by name; more than one where it is tied.
        left: parameters of two axes or more that cannot become codes, and why.
    """

    info: ModelInfo
    places: Mapping[str, tuple[Place, ...]]
    left: Mapping[str, str]


@dataclass
class _Found:
    layers: list[LayerInfo] = field(default_factory=list)
    places: dict[int, list[Place]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def survey(module: nn.Module) -> Survey:
    """Look through a module.

    Raises:
        InputError: it is quantized already, is TorchScript, or has weights that are not there: on the meta device,
            not initialized, or of another library's kind.
    """
    check(module)
    found = _Found()
    for path, owner in module.named_modules():
        if isinstance(owner, (nn.ParameterList, nn.ParameterDict)):
            continue
        kind = kind_of(owner)
        taken = _add(found, path, owner, kind) if kind is not None else []
        _add_calls(found, path, owner, [name for name in own_parameters(owner) if name not in taken])
    return _survey(found)


def check(module: nn.Module) -> None:
    """Refuse what cannot be quantized. Raises InputError as :func:`survey`."""
    if not isinstance(module, nn.Module):
        raise InputError(f"module is a {type(module).__name__}; give an nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("the module is TorchScript, which keeps its weights to itself; give the nn.Module")
    for path, owner in module.named_modules():
        if isinstance(owner, CodedWeight):
            raise InputError(
                f"the module is quantized already: {path} is {owner.row.name}; give the float module that it was "
                "made from"
            )
    for name, value in module.named_parameters():
        if is_lazy(value):
            raise InputError(f"parameter {name!r} is not initialized; run the module once on an example")
        if value.device.type == "meta":
            raise InputError(
                f"parameter {name!r} is on the meta device, where there are no values; load the weights first: "
                "module.to_empty(device='cpu') and load_state_dict"
            )
        if type(value.data) is not Tensor:
            raise InputError(
                f"parameter {name!r} is a {type(value.data).__name__}, which another library quantizes or shards; "
                "give the float module"
            )


def _add(found: _Found, path: str, layer: nn.Module, kind: Kind) -> list[str]:
    """A layer of a known class; the names of its weights."""
    parts = dict(kind.weights(layer))
    weights = [_weight(found, Place(path, attribute), layer, part) for attribute, part in parts.items()]
    name = path or kind.op
    if weights:
        found.layers.append(_layer(name, kind, tuple(weights)))
    return list(parts)


def _add_calls(found: _Found, path: str, owner: nn.Module, names: list[str]) -> None:
    """Parameters of no known layer, which the owner's forward may multiply with."""
    if not names:
        return
    used, why = calls(owner, names)
    for name in names:
        place = _place(path, name)
        call = used.get(name)
        if call is None:
            found.left[str(place)] = why or NO_PRODUCT
            continue
        weight = _weight(found, place, owner.get_submodule(name.rpartition(".")[0]), call.part)
        found.layers.append(_layer(str(place), call, (weight,)))


def _layer(name: str, what: Kind | Call, weights: tuple[WeightInfo, ...]) -> LayerInfo:
    dynamic = what.not_dynamic is None
    return LayerInfo(name, name, what.op, what.kind, weights, None, (), name, also=what.also, dynamic=dynamic)


def _place(path: str, name: str) -> Place:
    inner, _, attribute = name.rpartition(".")
    return Place(".".join(filter(None, (path, inner))), attribute)


def _weight(found: _Found, place: Place, owner: nn.Module, part: Part) -> WeightInfo:
    """The weight at a place, under the name of the first place where it was seen."""
    parameter = owner._parameters[place.attribute]
    assert parameter is not None
    places = found.places.setdefault(id(parameter), [])
    places.append(place)
    return WeightInfo(str(places[0]), tuple(parameter.shape), part.channel_axis, part.group_axis)


def _survey(found: _Found) -> Survey:
    places = {str(seen[0]): tuple(seen) for seen in found.places.values()}
    coded = {str(place) for seen in places.values() for place in seen}
    left = {name: why for name, why in found.left.items() if name not in coded}
    return Survey(ModelInfo((), (), tuple(found.layers)), places, left)
