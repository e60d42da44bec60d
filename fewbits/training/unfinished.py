"""What lies in the folder of an unfinished run, and whether a recipe can go on with it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.errors import InputError
from fewbits.planning import training_recipe as r
from fewbits.planning.recipe import preset

_SAID = {
    "model": "another model",
    "weights": "other weights in the model",
    "data": "other data",
    "batch_size": "another batch_size",
    "seed": "another seed",
}


def go_on_in(folder: Path, recipe: r.TrainingRecipe, original: nn.Module) -> None:
    """Make sure that what is in the folder came of this model, data and the stages that are finished, and note it.

    Stages that are not finished may have changed since: what they left half done is removed.

    Raises:
        InputError: it came of something else, or a finished stage has changed.
    """
    wanted = json.loads(json.dumps(_told(recipe, original)))
    path = folder / "run.json"
    if path.is_file():
        before = json.loads(path.read_text())
        for field, other in _SAID.items():
            if before.get(field) != wanted[field]:
                raise InputError(
                    f"{folder}: holds an unfinished run with {other}; remove it to begin anew, or go back to what "
                    "it began with"
                )
        _drop_changed(folder, before["stages"], wanted["stages"])
    write_whole(path, lambda part: part.write_text(json.dumps(wanted)))


def stage_file(folder: Path, name: str, suffix: str) -> Path:
    """A file of a stage: ``3-distil.onnx`` of ``3 distil``."""
    return folder / f"{name.replace(' ', '-')}{suffix}"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that is whole, or the one before."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    os.replace(part, path)


def _told(recipe: r.TrainingRecipe, original: nn.Module) -> dict[str, Any]:
    """All that a run depends on."""
    return {
        "model": recipe.model,
        "weights": _digest(original.state_dict()),
        "data": hashlib.sha256(Path(recipe.data).read_bytes()).hexdigest(),
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "stages": [_told_of(stage) for stage in recipe.stages if not isinstance(stage, r.Export)],
    }


def _told_of(stage: r.Stage) -> dict[str, Any]:
    told = stage.model_dump()
    if isinstance(stage, r.Qat) and preset(stage.recipe) is None:
        told["text"] = Path(stage.recipe).read_text(encoding="utf-8")
    return told


def _digest(state: Mapping[str, Any]) -> str:
    """Of names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, value in state.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _drop_changed(folder: Path, before: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Remove the checkpoints of stages from the first one on that changed."""
    pairs = list(itertools.zip_longest(before, wanted))
    first = next((place for place, (old, new) in enumerate(pairs) if old != new), None)
    if first is None:
        return
    for number, (old, _) in enumerate(pairs[first:], first + 1):
        if old is not None and stage_file(folder, f"{number} {old['kind']}", ".json").is_file():
            raise InputError(
                f"{folder}: holds stage '{number} {old['kind']}', finished where stages.{first + 1} has "
                f"{_difference(*pairs[first])}; set it back, or remove the folder to begin anew"
            )
        for left in folder.glob(f"{number}-*.checkpoint"):
            left.unlink()


def _difference(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    """What a stage had that is something else now."""
    assert old is not None  # what was not there has nothing finished behind it
    if new is None or old["kind"] != new["kind"]:
        return f"kind = {json.dumps(old['kind'])}"
    name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    if name == "text":
        return f"another text of {old['recipe']}"
    return f"{name} = {json.dumps(old.get(name))}"
