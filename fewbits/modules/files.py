"""Modules with codes in a safetensors file: codes as codes, floats as they are, everything else as metadata.

The tensors have the names of the module's ``state_dict``; of tied ones the first is stored. A weight ``w`` lies there
as ``w.codes``, ``w.scale`` and so on, in the form of :mod:`fewbits.numerics.files`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewbits.errors import InputError
from fewbits.keys import check_keys
from fewbits.modules.convert import LEFT, put, refresh
from fewbits.modules.half import DTYPES, cast_ends, dtype_of
from fewbits.modules.products import PRODUCTS, FloatProducts
from fewbits.modules.survey import Place
from fewbits.modules.weight import CodedWeight
from fewbits.numerics.checks import naming
from fewbits.numerics.files import PARTS, described, description_of

KEY = "fewbits.module"


class _Weight(BaseModel):
    """What a file says of one coded weight."""

    model_config = ConfigDict(extra="forbid")

    names: list[str]
    description: dict[str, Any]
    dtype: str
    products: str


class _Header(BaseModel):
    """What a file says of a module."""

    model_config = ConfigDict(extra="forbid")

    weights: list[_Weight] = []
    left: dict[str, str] = {}
    half: Literal["fp16", "bf16"] | None = None


def save(module: nn.Module, path: str | PathLike[str]) -> None:
    """Write a module that :func:`fewbits.quantize` gave; an existing file is replaced.

    Raises:
        InputError: nothing in it is quantized, or the file cannot be written.
    """
    weights = [_described(weight, names) for weight, names in coded_weights(module).items()]
    half = dtype_of(module)
    if not weights and half is None:
        raise InputError(
            f"{path}: nothing in the module is codes; torch.save or safetensors hold a float module as it is, and what "
            "runs in an engine is kept by fb.compress(module, data, recipe=..., out=FOLDER)"
        )
    header = _Header(weights=weights, left=getattr(module, LEFT, {}), half=half)
    try:
        save_file(_stored(module), path, {KEY: header.model_dump_json()})
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def metadata_of(weights: Mapping[tuple[str, ...], tuple[dict[str, object], str]]) -> dict[str, str]:
    """What a file says of weights that are multiplied in float.

    Args:
        weights: by all names of each, its description (:func:`fewbits.numerics.files.description_of`) and its dtype.
    """
    described = [
        _Weight(names=list(names), description=about, dtype=dtype, products=FloatProducts.name)
        for names, (about, dtype) in weights.items()
    ]
    return {KEY: _Header(weights=described, left={}).model_dump_json()}


def load(path: str | PathLike[str], skeleton: nn.Module, name: str) -> nn.Module:
    """The module of a file, in what its architecture makes: ``skeleton`` becomes that module.

    Args:
        path: of a file that :func:`save` wrote.
        skeleton: the float module, with any weights or on the meta device.
        name: of the skeleton, for messages.

    Raises:
        InputError: no such file, another one, or not of this architecture.
    """
    return load_shards([Path(path)], Path(path), skeleton, name)


def load_shards(paths: Sequence[Path], place: Path, skeleton: nn.Module, name: str) -> nn.Module:
    """As :func:`load`, of files that hold a module's tensors between them; messages call them ``place``."""
    floats: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    coded: set[str] = set()
    for path in paths:
        header, stored = _read(path)
        if header.half is not None:
            cast_ends(skeleton, DTYPES[header.half])
        for about in header.weights:
            weight = _weight(path, about, stored)
            for at in about.names:
                _check_place(path, name, skeleton, at, weight)
                put(skeleton, _place(at), weight)
                coded.update(f"{at}.{part}" for part in PARTS)
        floats |= stored
        left |= header.left
    wanted = {key: value for key, value in skeleton.state_dict(keep_vars=True).items() if key not in coded}
    check_keys(place, name, wanted, floats)
    _assign(skeleton, floats)
    for key, value in _held(skeleton):
        if value.device.type == "meta":
            raise InputError(
                f"{place}: holds no {key!r}, which {name} makes by itself, and which is on the meta device; make the "
                "module where values are"
            )
    setattr(skeleton, LEFT, left)
    return skeleton


def is_module_file(path: str | PathLike[str]) -> bool:
    """Whether :func:`save` wrote it."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def coded_weights(module: nn.Module) -> dict[CodedWeight, list[str]]:
    """The coded weights of a module and their names, more than one where they are tied."""
    found: dict[CodedWeight, list[str]] = {}
    for name, weight in module.named_modules(remove_duplicate=False):
        if isinstance(weight, CodedWeight):
            found.setdefault(weight, []).append(name)
    return found


def _described(weight: CodedWeight, names: list[str]) -> _Weight:
    return _Weight(
        names=names,
        description=description_of(weight.row, weight.layout),
        dtype=str(weight.dtype).removeprefix("torch."),
        products=weight.products.name,
    )


def _stored(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module, each once, on the CPU."""
    seen: set[tuple] = set()
    kept = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"its state holds {name!r}, a {type(value).__name__}; only tensors can be stored"
            )
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() == 0 or same not in seen:
            seen.add(same)
            kept[name] = value.detach().cpu().contiguous()
    return _apart(kept)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of one storage (such as columns of a table) as tensors of their own, which the format needs."""
    taken: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        at = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if at in taken else value
        taken.add(at)
    return apart


def _read(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            stored = _tensors(path, file)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable .safetensors file ({error})") from None
    if text is None:
        raise InputError(
            f"{path}: holds no module that fewbits quantized; give one that fewbits.save wrote, or use safetensors"
        )
    try:
        return _Header.model_validate(json.loads(text)), stored
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except ValueError as error:
        why = str(error)
    raise InputError(f"{path}: its description is not one that fewbits.save writes: {why}")


def _tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """All tensors of an open file, read into memory of their own by plain calls.

    What is mapped from a file goes with the file, is not where vectors can be loaded from, and comes page by page:
    copying 40 MB of it took ten times as long.
    """
    found = {}
    with path.open("rb") as plain:
        plain.seek(8 + int.from_bytes(plain.read(8), "little"))
        for key in file.offset_keys():
            found[key] = torch.empty_like(file.get_tensor(key))
            plain.readinto(found[key].view(-1).view(torch.uint8).numpy().data)
    return found


def _weight(path: Path, about: _Weight, floats: dict[str, Tensor]) -> CodedWeight:
    """A coded weight; its parts are taken out of ``floats``."""
    first = about.names[0]
    try:
        with naming(first):
            row, layout = described(about.description)
            parts = {part: floats.pop(key) for part in PARTS if (key := f"{first}.{part}") in floats}
            if about.products not in PRODUCTS:
                raise InputError(
                    f"it is multiplied in a way that this version does not know: {about.products!r}"
                )
            weight = CodedWeight(row, layout, parts, getattr(torch, about.dtype), PRODUCTS[about.products]())
            weight.check()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return weight


def _check_place(path: Path, name: str, skeleton: nn.Module, at: str, weight: CodedWeight) -> None:
    try:
        parameter = skeleton.get_parameter(at)
    except AttributeError:
        raise InputError(f"{path}: its weights are not those of {name}; not in the model: {at}") from None
    if parameter.shape != weight.shape:
        shapes = f"{list(weight.shape)} in the file and {list(parameter.shape)} in the model"
        raise InputError(f"{path}: its weights are not those of {name}; shapes differ: {at} is {shapes}")


def _place(name: str) -> Place:
    owner, _, attribute = name.rpartition(".")
    return Place(owner, attribute)


def _assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let tensors stand in the places of those names, in their own dtype; what was tied stays tied."""
    places: dict[int, list[Place]] = {}
    held = dict(_held(module))
    fresh: dict[int, nn.Parameter] = {}
    for name, value in held.items():
        places.setdefault(id(value), []).append(_place(name))
    for name, tensor in tensors.items():
        before = held[name]
        for place in places[id(before)]:
            owner = module.get_submodule(place.owner)
            if isinstance(before, nn.Parameter):
                owner._parameters[place.attribute] = fresh.setdefault(
                    id(before), nn.Parameter(tensor, requires_grad=before.requires_grad)
                )
            else:
                owner._buffers[place.attribute] = tensor
            refresh(owner)


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
