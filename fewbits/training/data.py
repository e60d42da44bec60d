"""What a recipe's stages learn from: the arrays of an ``.npz``, whole in memory, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbits import npz
from fewbits.errors import InputError
from fewbits.samples import LABELS

IGNORED = -100  # a label that cross entropy leaves out


@dataclass(frozen=True)
class TrainingData:
    """Samples, and the class of each where a stage learns from them.

    Attributes:
        path: of the file, for messages.
        arrays: by the name of the model's input, samples along the first axis; floats are float32.
        labels: int64, or None.
    """

    path: Path
    arrays: dict[str, Tensor]
    labels: Tensor | None

    @property
    def count(self) -> int:
        """Samples."""
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The first samples as arrays."""
        return {name: one[:count].numpy() for name, one in self.arrays.items()}

    def example(self, count: int) -> Any:
        """The first samples as a module takes them."""
        return self.inputs(torch.arange(min(count, self.count)))

    def inputs(self, chosen: Tensor) -> Any:
        """Samples by their numbers: the only input as it is, several by name."""
        part = {name: one[chosen] for name, one in self.arrays.items()}
        return part if len(part) > 1 else next(iter(part.values()))

    def check_labels(self, outputs: Tensor) -> None:
        """Make sure that labels are classes of a model that gives such outputs: logits [n, classes, ...].

        Raises:
            InputError: they are none, are not one for each place, or are out of range.
        """
        if self.labels is None:
            return
        if outputs.ndim < 2:
            raise InputError(
                f"{self.path}: labels are learned from logits [samples, classes], but the model gives "
                f"{list(outputs.shape)}"
            )
        wanted = [self.count, *outputs.shape[2:]]
        if list(self.labels.shape) != wanted:
            raise InputError(f"{self.path}: labels are {list(self.labels.shape)}; give classes, {wanted}")
        real = self.labels[self.labels != IGNORED]
        low, high = (int(real.min()), int(real.max())) if len(real) else (0, 0)
        if low < 0 or high >= outputs.shape[1]:
            raise InputError(
                f"{self.path}: labels go from {low} to {high}, but the model has {outputs.shape[1]} classes; give "
                f"integers from 0 to {outputs.shape[1] - 1}"
            )


@dataclass(frozen=True)
class Batches:
    """Samples in random order, another one each time: pairs of inputs and labels, or None where there are none.

    ``size`` at most: they are split evenly, for a batch of one that is left over has no statistics for batch norm.
    """

    data: TrainingData
    size: int

    def __len__(self) -> int:
        return -(-self.data.count // self.size)

    def __iter__(self) -> Iterator[tuple[Any, Tensor | None]]:
        labels = self.data.labels
        for chosen in torch.randperm(self.data.count).tensor_split(len(self)):
            yield self.data.inputs(chosen), None if labels is None else labels[chosen]


def read_training_data(path: Path, learner: str | None) -> TrainingData:
    """All of an ``.npz``: training needs it in random order.

    Args:
        path: of the file.
        learner: what learns from its labels, for messages; they are left aside where None.

    Raises:
        InputError: it cannot be read, arrays that hold no numbers, NaN or infinity, or differ in length, or labels that
            are missing or no integers.
    """
    arrays = {
        name: array for block in npz.read(path, None, (LABELS,), _as_a_whole) for name, array in block.items()
    }
    labels = arrays.pop(LABELS, None)
    if learner is None:
        labels = None
    elif labels is None:
        raise InputError(f"{path}: has no array {LABELS!r}, which {learner} learns from")
    if not arrays:
        raise InputError(
            f"{path}: holds no samples; give arrays named like the model's inputs, and {LABELS!r}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"{path}: array {name!r} is {array.dtype}; give numbers")
    if labels is not None and labels.dtype.kind not in "iu":
        raise InputError(
            f"{path}: labels are {labels.dtype}; give classes as integers: labels.astype('int64')"
        )
    every = arrays if labels is None else {**arrays, LABELS: labels}
    counts = {name: len(array) if array.ndim else 0 for name, array in every.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        raise InputError(
            f"{path}: arrays of different or no length, {counts}; give as many labels as samples"
        )
    for name, array in arrays.items():
        broken = np.argwhere(~np.isfinite(array))
        if len(broken):
            raise InputError(f"{path}: sample {broken[0, 0]} has NaN or Inf in {name!r}; take it out")
    return TrainingData(
        path,
        {name: torch.from_numpy(_own(array)) for name, array in arrays.items()},
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )


def _as_a_whole(name: str, shape: tuple[int, ...]) -> bool:
    return False


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that may be written to; floats as float32."""
    return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
