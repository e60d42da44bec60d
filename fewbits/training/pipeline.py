"""Stages of training one after the other, each finished on disk before the next begins."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbits import npz
from fewbits.errors import InputError
from fewbits.models.torch.factory import make
from fewbits.planning import training_recipe as r
from fewbits.samples import LABELS
from fewbits.source import open_source
from fewbits.training.blocks import prune_blocks
from fewbits.training.channels import count_macs, load_smaller, prune_channels
from fewbits.training.distil import distillation
from fewbits.training.loop import Epoch, fit
from fewbits.training.masks import Layer, keep_zeros, prune
from fewbits.training.qat_module import qat

Progress = Callable[[str, int, int], None]
EXAMPLES = 8  # that a module is exported and its multiplications are counted with


@dataclass(frozen=True)
class Finished:
    """A stage that is over.

    Attributes:
        kind: of the stage; ``original`` for the model as it came.
        name: unique, with its number.
        path: its ``.onnx``.
        seconds: that it took, interrupted runs included, without measuring.
        macs: multiplications for one sample.
        parameters: how many the module has.
        sparsity: the share of the weights of its layers that are zero.
    """

    kind: str
    name: str
    path: Path
    seconds: float
    macs: int
    parameters: int
    sparsity: float


def run_stages(recipe: r.TrainingRecipe, folder: Path, progress: Progress) -> list[Finished]:
    """Run what is not finished yet in ``folder``; the model as it came, and every stage but export.

    Raises:
        InputError: no such model or data, labels that are missing, ``folder`` is of another run, or what a stage says.
    """
    arrays = _arrays(Path(recipe.data))
    torch.manual_seed(recipe.seed)
    original = make(recipe.model).eval()
    folder.mkdir(exist_ok=True)
    _same_run(recipe, folder)
    run = _Run(recipe, folder, arrays, original, progress)
    module, finished = original, [run.finish("original", "original", original, 0.0)]
    sparse, blocks = False, list[str]()
    for number, stage in enumerate(recipe.stages, 1):
        if isinstance(stage, r.Export):
            break
        name = f"{number} {stage.kind}"
        blocks.extend(stage.blocks if isinstance(stage, r.Prune) else ())
        done = run.finished(name)
        if done is None:
            progress(name, 0, 0)
            torch.manual_seed(recipe.seed)
            start = time.perf_counter()
            before = copy.deepcopy(module)
            module, epochs = _STAGES[stage.kind](run, stage, before, name, sparse)
            # Epochs of an interrupted run are not run again, and count too.
            seconds = max(time.perf_counter() - start, sum(one.seconds for one in epochs))
            done = run.finish(stage.kind, name, module, seconds, before)
        elif stage.kind != "qat":
            fewer = prune_blocks(original, run.example(EXAMPLES), blocks)
            module = load_smaller(fewer, run.state(name))
        finished.append(done)
        sparse = sparse or stage.kind == "sparsify"
    return finished


@dataclass(frozen=True)
class _Run:
    recipe: r.TrainingRecipe
    folder: Path
    arrays: dict[str, Tensor]
    original: nn.Module
    progress: Progress

    def file(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}{suffix}"

    def finished(self, name: str) -> Finished | None:
        """A stage that an earlier run finished."""
        path = self.file(name, ".json")
        if not path.is_file():
            return None
        told = json.loads(path.read_text())
        return Finished(**{**told, "path": self.file(name, ".onnx")})

    def finish(
        self, kind: str, name: str, module: nn.Module, seconds: float, before: nn.Module | None = None
    ) -> Finished:
        """Write a stage's file and state; it is finished with the last of them, which is whole or not there."""
        found = self.finished(name)
        if found is not None:
            return found
        path, counted = self.file(name, ".onnx"), module
        if kind == "qat":
            assert before is not None
            module.export(path)  # type: ignore[operator]
            counted = before
        else:
            with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch:
                written, _ = open_source(module, None, self.named(EXAMPLES), None, Path(scratch))
                shutil.move(written, path)
            _whole(self.file(name, ".pt"), lambda part: torch.save(module.state_dict(), part))
        weights = [one.weight for one in counted.modules() if isinstance(one, Layer)]
        done = Finished(
            kind,
            name,
            path,
            seconds,
            count_macs(counted, self.example(EXAMPLES)),
            sum(one.numel() for one in counted.parameters()),
            1
            - sum(int(one.count_nonzero()) for one in weights) / max(sum(one.numel() for one in weights), 1),
        )
        text = json.dumps({**asdict(done), "path": path.name})
        _whole(self.file(name, ".json"), lambda part: part.write_text(text))
        with suppress(FileNotFoundError):
            self.file(name, ".checkpoint").unlink()
        return done

    def state(self, name: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(self.file(name, ".pt"), weights_only=True)
        return state

    def named(self, count: int) -> dict[str, np.ndarray]:
        """The first samples as arrays, without labels."""
        return {name: one[:count].numpy() for name, one in self.arrays.items() if name != LABELS}

    def example(self, count: int) -> Any:
        """The first samples as the module takes them."""
        return _inputs({name: one[:count] for name, one in self.arrays.items()})

    def batches(self) -> Batches:
        return Batches(self.arrays, self.recipe.batch_size)

    def labelled(self, name: str) -> None:
        if LABELS not in self.arrays:
            raise InputError(f"{self.recipe.data}: has no array 'labels', which stage {name!r} learns from")

    def fit(self, module: nn.Module, stage: Any, name: str, objective: Any, sparse: bool) -> list[Epoch]:
        """Train a stage's module; where weights were set to zero they stay."""
        held = keep_zeros(module) if sparse else None
        done = fit(
            module,
            self.batches(),
            epochs=stage.epochs,
            lr=stage.lr,
            precision=stage.precision,
            objective=objective,
            checkpoint=self.file(name, ".checkpoint"),
            seed=self.recipe.seed,
            progress=lambda what, count, total: self.progress(f"{name}: {what}", count, total),
        )
        if held is not None:
            held.bake()
        return done

    def taught(self, stage: Any, name: str, **more: Any) -> Any:
        if stage.weight < 1:
            self.labelled(name)
        return distillation(self.original, temperature=stage.temperature, weight=stage.weight, **more)


Ran = tuple[nn.Module, Sequence[Epoch]]


def _prune(run: _Run, stage: r.Prune, module: nn.Module, name: str, sparse: bool) -> Ran:
    data = None
    if stage.importance == "taylor":
        run.labelled(name)
        data = list(itertools.islice(run.batches(), stage.batches))
    example = run.example(EXAMPLES)
    if stage.blocks and (stage.macs, stage.params, stage.channels) == (None, None, None):
        return prune_blocks(module, example, stage.blocks), ()
    # Channels first: what they are worth can be told as long as the model does what it learned.
    smaller = prune_channels(
        module,
        example,
        macs=stage.macs,
        params=stage.params,
        channels=stage.channels,
        importance=stage.importance,
        data=data,
        multiple=stage.multiple,
        exclude=stage.exclude,
    )
    return prune_blocks(smaller, example, stage.blocks), ()


def _sparsify(run: _Run, stage: r.Sparsify, module: nn.Module, name: str, sparse: bool) -> Ran:
    prune(module, stage.sparsity, pattern=stage.pattern, across=stage.across, exclude=stage.exclude).bake()
    return module, ()


def _train(run: _Run, stage: r.Train, module: nn.Module, name: str, sparse: bool) -> Ran:
    run.labelled(name)
    return module, run.fit(module, stage, name, None, sparse)


def _distil(run: _Run, stage: r.Distil, module: nn.Module, name: str, sparse: bool) -> Ran:
    objective = run.taught(stage, name, features=stage.features, feature_weight=stage.feature_weight)
    return module, run.fit(module, stage, name, objective, sparse)


def _qat(run: _Run, stage: r.Qat, module: nn.Module, name: str, sparse: bool) -> Ran:
    objective = run.taught(stage, name)
    student = qat(module, stage.recipe, run.named(stage.samples), exclude=stage.exclude)
    return student, run.fit(student, stage, name, objective, False)


_STAGES: dict[str, Callable[..., Ran]] = {
    "prune": _prune,
    "sparsify": _sparsify,
    "train": _train,
    "distil": _distil,
    "qat": _qat,
}


@dataclass(frozen=True)
class Batches:
    """Samples in random order, another one each time: pairs of inputs and labels, or None where there are none."""

    arrays: dict[str, Tensor]
    size: int

    def __len__(self) -> int:
        return -(-self._count // self.size)

    def __iter__(self) -> Iterator[tuple[Any, Tensor | None]]:
        for chosen in torch.randperm(self._count).split(self.size):
            part = {name: array[chosen] for name, array in self.arrays.items()}
            yield _inputs(part), part.get(LABELS)

    @property
    def _count(self) -> int:
        return len(next(iter(self.arrays.values())))


def _inputs(part: dict[str, Tensor]) -> Any:
    """The only input as it is, several by name."""
    inputs = {name: array for name, array in part.items() if name != LABELS}
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _arrays(path: Path) -> dict[str, Tensor]:
    """All of an ``.npz``: training needs it in random order. Floats become float32."""
    npz.names(path)  # says what is wrong with a file that is none
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if not set(arrays) - {LABELS}:
        raise InputError(f"{path}: holds no samples; give arrays named like the model's inputs, and 'labels'")
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        raise InputError(
            f"{path}: arrays of different or no length, {counts}; give as many labels as samples"
        )
    return {
        name: torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
        for name, array in arrays.items()
    }


def _same_run(recipe: r.TrainingRecipe, folder: Path) -> None:
    """Make sure that what is in the folder came of this recipe on this data."""
    data = hashlib.sha256(Path(recipe.data).read_bytes()).hexdigest()
    wanted = json.loads(json.dumps({"recipe": recipe.model_dump(exclude={"eval"}), "data": data}))
    path = folder / "run.json"
    if path.is_file() and json.loads(path.read_text()) != wanted:
        raise InputError(
            f"{folder}: holds an unfinished run of another recipe or other data; remove it to begin anew"
        )
    _whole(path, lambda part: part.write_text(json.dumps(wanted)))


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that is whole, or the one before."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    os.replace(part, path)
