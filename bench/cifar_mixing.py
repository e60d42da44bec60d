"""CIFAR-10's images mixed by twos, so that a teacher is asked of more than 10,000 images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bench.cifar_training import Augmented

Mixing = Callable[["Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""Of images, others, both [n, 3, h, w], and shares [n]: the mixed images, and how much of the first is in each [n]."""


@dataclass(frozen=True)
class Mixed:
    """Batches in which every image is mixed with another of its batch, and so are the labels.

    Gives x as `batches` does, and labels float32 [n, 10]. For distillation after Beyer et al. 2022, "Knowledge
    distillation: A good teacher is patient and consistent" (arXiv:2106.05237).

    Attributes:
        batches: what is mixed.
        ways: of mixing, batch by batch in turn.
    """

    batches: Augmented
    ways: tuple[Mixing, ...]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch
        from torch.nn.functional import one_hot

        for mix, (x, labels) in zip(itertools.cycle(self.ways), self.batches, strict=False):
            other, known = torch.randperm(len(x)), one_hot(labels, 10).float()
            mixed, share = mix(x, x[other], torch.rand(len(x)))
            share = share[:, None]
            yield mixed, share * known + (1 - share) * known[other]


def blend(x: Tensor, other: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Both, one through the other. Source: Zhang et al. 2018, "mixup" (arXiv:1710.09412)."""
    wide = share[:, None, None, None]
    return wide * x + (1 - wide) * other, share


def paste(x: Tensor, other: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """A square of the other, cut off at the edge. Source: Yun et al. 2019, "CutMix" (arXiv:1905.04899)."""
    import torch

    size = x.shape[-1]
    half = size * (1 - share).sqrt() / 2
    middle = size * torch.rand(2, len(x))
    rows, columns = ((torch.arange(size) - one[:, None]).abs() < half[:, None] for one in middle)
    inside = rows[:, :, None] & columns[:, None, :]
    return torch.where(inside[:, None], other, x), 1 - inside.float().mean(dim=(1, 2))
