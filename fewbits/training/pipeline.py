"""Stages of training one after the other, each finished on disk before the next begins."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.errors import FewbitsError, InputError
from fewbits.models.torch.factory import make
from fewbits.named import describe
from fewbits.planning import training_recipe as r
from fewbits.planning.plan import Plan
from fewbits.planning.recipe import read_recipe
from fewbits.source import open_source
from fewbits.training.blocks import prune_blocks
from fewbits.training.channels import beside, count_macs, load_smaller, prune_channels
from fewbits.training.data import Batches, TrainingData, read_training_data
from fewbits.training.distil import distillation
from fewbits.training.loop import Epoch, check_precision, fit, one_device
from fewbits.training.masks import Layer, Masks, keep_zeros, prune
from fewbits.training.objective import Objective, call, first
from fewbits.training.qat_module import QatModule, qat
from fewbits.training.quantized import refuse_quantized
from fewbits.training.unfinished import go_on_in, stage_file, write_whole

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
        sparsity: the share of the weights of its layers that are zero; of the codes once there are some.
    """

    kind: str
    name: str
    path: Path
    seconds: float
    macs: int
    parameters: int
    sparsity: float


def run_stages(
    recipe: r.TrainingRecipe,
    folder: Path,
    progress: Progress,
    begun: Callable[[Finished], None] = lambda original: None,
) -> list[Finished]:
    """Run what is not finished yet in ``folder``; the model as it came, and every stage but export.

    What needs no training is checked before any begins; ``begun`` is called with the model as it came, and may raise.

    Raises:
        InputError: no such model or data, labels that are missing or wrong, ``folder`` is of another run, or what a
            stage says.
    """
    stages = {
        f"{number} {stage.kind}": stage
        for number, stage in enumerate(recipe.stages, 1)
        if not isinstance(stage, r.Export)
    }
    learner = next((f"stage {name!r}" for name, stage in stages.items() if _needs_labels(stage)), None)
    data = read_training_data(Path(recipe.data), learner)
    torch.manual_seed(recipe.seed)
    original = make(recipe.model).eval()
    refuse_quantized(original)
    run = _Run(recipe, folder, data, original, progress)
    data.check_labels(run.logits())
    for name, stage in stages.items():
        with _named(name):
            _check(run, stage)
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    go_on_in(folder, recipe, original)
    try:
        module, finished = original, [run.finish("original", "original", original, 0.0)]
        begun(finished[0])
    except FewbitsError:
        if new:
            shutil.rmtree(folder)
        raise
    zeros: Zeros | None = None
    blocks = list[str]()
    for name, stage in stages.items():
        if isinstance(stage, r.Sparsify) and stage.over is not None:
            zeros = partial(_grow, stage)
            continue  # it is a part of the stage behind
        blocks.extend(stage.blocks if isinstance(stage, r.Prune) else ())
        done = run.finished(name)
        if done is None:
            progress(name, 0, 0)
            torch.manual_seed(recipe.seed)
            start = time.perf_counter()
            with _named(name):
                module, epochs = _STAGES[stage.kind](run, stage, copy.deepcopy(module), name, zeros)
                # Epochs of an interrupted run are not run again, and count too.
                seconds = max(time.perf_counter() - start, sum(one.seconds for one in epochs))
                done = run.finish(stage.kind, name, module, seconds, finished[-1])
        elif stage.kind != "qat":
            fewer = prune_blocks(original, run.example(), blocks)
            module = load_smaller(fewer, run.state(name))
        finished.append(done)
        if zeros is not None or stage.kind == "sparsify":
            zeros = _keep
    return finished


def _needs_labels(stage: r.Stage) -> bool:
    if isinstance(stage, r.Prune):
        return stage.importance == "taylor" and stage.limits != {}
    return isinstance(stage, r.Train) or (isinstance(stage, (r.Distil, r.Qat)) and stage.weight < 1)


def _check(run: _Run, stage: r.Stage) -> None:
    """What of a stage can be told to be wrong from the model as it came. Raises InputError."""
    if isinstance(stage, r.Qat):
        read_recipe(stage.recipe)
    if isinstance(stage, (r.Distil, r.Qat)):
        distillation(run.original, features=stage.features)
    if isinstance(stage, (r.Train, r.Distil, r.Qat)):
        check_precision(stage.precision, one_device(run.original))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is wrong in a stage is said with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"stage {name!r}: {error}") from error


@dataclass(frozen=True)
class _Run:
    recipe: r.TrainingRecipe
    folder: Path
    data: TrainingData
    original: nn.Module
    progress: Progress

    def file(self, name: str, suffix: str) -> Path:
        return stage_file(self.folder, name, suffix)

    def finished(self, name: str) -> Finished | None:
        """A stage that an earlier run finished."""
        path = self.file(name, ".json")
        if not path.is_file():
            return None
        told = json.loads(path.read_text())
        return Finished(**{**told, "path": self.file(name, ".onnx")})

    def finish(
        self, kind: str, name: str, module: nn.Module, seconds: float, before: Finished | None = None
    ) -> Finished:
        """Write a stage's file and state; it is finished with the last of them, which is whole or not there.

        All but ``prune`` have the size of the stage before.
        """
        found = self.finished(name)
        if found is not None:
            return found
        path = self.file(name, ".onnx")
        if isinstance(module, QatModule):
            module.export(path)
            sparsity = _zero_codes(module.plan)
        else:
            with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch:
                written, _ = open_source(module, None, self.data.first(EXAMPLES), None, Path(scratch))
                shutil.move(written, path)
            write_whole(self.file(name, ".pt"), lambda part: torch.save(module.state_dict(), part))
            sparsity = _zeros([one.weight for one in module.modules() if isinstance(one, Layer)])
        if before is None or kind == "prune":
            macs = count_macs(module, self.example())
            parameters = sum(one.numel() for one in module.parameters())
        else:
            macs, parameters = before.macs, before.parameters
        done = Finished(kind, name, path, seconds, macs, parameters, sparsity)
        text = json.dumps({**asdict(done), "path": path.name})
        write_whole(self.file(name, ".json"), lambda part: part.write_text(text))
        with suppress(FileNotFoundError):
            self.file(name, ".checkpoint").unlink()
        return done

    def state(self, name: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(self.file(name, ".pt"), weights_only=True)
        return state

    def example(self) -> Any:
        """A few samples as the module takes them."""
        return self.data.example(EXAMPLES)

    def batches(self) -> Batches:
        return Batches(self.data, self.recipe.batch_size)

    def logits(self) -> Tensor:
        """What the model as it came gives for a few samples. Raises InputError where it does not run on them."""
        try:
            with torch.no_grad():
                given = first(call(self.original, beside(self.original, self.example())))
        except Exception as error:
            raise InputError(
                f"{self.data.path}: {self.recipe.model} does not run on its samples: {describe(error)}"
            ) from error
        if not isinstance(given, Tensor):
            raise InputError(f"{self.recipe.model}: gives a {type(given).__name__}; give a model of tensors")
        return given

    def fit(
        self, module: nn.Module, stage: Any, name: str, objective: Objective | None, schedule: Schedule | None
    ) -> list[Epoch]:
        """Train a stage's module."""
        return fit(
            module,
            self.batches(),
            epochs=stage.epochs,
            lr=stage.lr,
            precision=stage.precision,
            objective=objective,
            schedule=schedule,
            checkpoint=self.file(name, ".checkpoint"),
            seed=self.recipe.seed,
            progress=lambda what, count, total: self.progress(f"{name}: {what}", count, total),
        )

    def taught(self, stage: r.Distil | r.Qat) -> Objective:
        return distillation(
            self.original,
            temperature=stage.temperature,
            weight=stage.weight,
            features=stage.features,
            feature_weight=stage.feature_weight,
        )


def _zero_codes(plan: Plan) -> float:
    """The share of a plan's weights that are zero once they are rounded."""
    return _zeros(
        [
            torch.from_numpy(one.values) if one.codes is None else one.codes.dequantize()
            for one in plan.weights.values()
        ]
    )


def _zeros(weights: Sequence[Tensor]) -> float:
    """The share of their elements that are zero."""
    return 1 - sum(int(one.count_nonzero()) for one in weights) / max(sum(one.numel() for one in weights), 1)


Ran = tuple[nn.Module, Sequence[Epoch]]
Schedule = Callable[[float], None]
Zeros = Callable[[nn.Module, int], Masks]
"""Puts masks on a module that will be trained for so many epochs."""


def _keep(module: nn.Module, epochs: int) -> Masks:
    return keep_zeros(module)


def _grow(stage: r.Sparsify, module: nn.Module, epochs: int) -> Masks:
    assert stage.over is not None
    over = (0.0, stage.over / epochs)
    return prune(
        module, stage.sparsity, pattern=stage.pattern, over=over, across=stage.across, exclude=stage.exclude
    )


def _prune(run: _Run, stage: r.Prune, module: nn.Module, name: str, zeros: Zeros | None) -> Ran:
    data = None
    if stage.importance == "taylor":
        data = list(itertools.islice(run.batches(), stage.batches))
    example = run.example()
    if not stage.limits:
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


def _sparsify(run: _Run, stage: r.Sparsify, module: nn.Module, name: str, zeros: Zeros | None) -> Ran:
    prune(module, stage.sparsity, pattern=stage.pattern, across=stage.across, exclude=stage.exclude).bake()
    return module, ()


def _train(run: _Run, stage: r.Train, module: nn.Module, name: str, zeros: Zeros | None) -> Ran:
    return _trained(run, stage, module, name, None, zeros)


def _distil(run: _Run, stage: r.Distil, module: nn.Module, name: str, zeros: Zeros | None) -> Ran:
    return _trained(run, stage, module, name, run.taught(stage), zeros)


def _trained(
    run: _Run,
    stage: r.Train | r.Distil,
    module: nn.Module,
    name: str,
    objective: Objective | None,
    zeros: Zeros | None,
) -> Ran:
    if zeros is None:
        return module, run.fit(module, stage, name, objective, None)
    masks = zeros(module, stage.epochs)
    epochs = run.fit(module, stage, name, objective, masks)
    masks.bake()
    return module, epochs


def _qat(run: _Run, stage: r.Qat, module: nn.Module, name: str, zeros: Zeros | None) -> Ran:
    student = qat(module, stage.recipe, run.data.first(stage.samples), exclude=stage.exclude)

    def freeze(done: float) -> None:
        if stage.freeze is not None and done >= stage.freeze:
            student.freeze_ranges()

    return student, run.fit(student, stage, name, run.taught(stage), freeze)


_STAGES: dict[str, Callable[..., Ran]] = {
    "prune": _prune,
    "sparsify": _sparsify,
    "train": _train,
    "distil": _distil,
    "qat": _qat,
}
