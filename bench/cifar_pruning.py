"""ResNet-20 made smaller and taught by what it was: the jobs, each in a process of its own.

`python -m bench.cifar_pruning EPOCHS` tells what mixing images brings on training images kept apart.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import models
from bench.cifar_training import Augmented, _batches

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = ("layer1.0", "layer1.1", "layer2.2")
"""The three that 2,000 training images miss least, one at a time."""
BETWEEN = 6  # epochs that bring back what the blocks did, so that it can be told what channels are worth
NARROWED = 0.5  # of the channels that stay
KEPT = ("layer1.*", "layer2.*")  # as they are: most of what is left to win is in the last blocks' weights
MULTIPLE = 16  # channels, in which ONNX Runtime computes with AVX-512
SCORED = 16  # batches that tell what channels are worth
MIXED = 0.4  # of the beta distribution that tells how much of the other image is in one
RATE, DECAY = 0.05, 1e-4
APART = 2000  # training images that settings are chosen on
ROUNDING = {"epochs": 2, "lr": 1e-4}


@dataclass(frozen=True)
class Mixed:
    """Batches in which every image is mixed with another, and so are the labels: x as in `batches`, float32 [n, 10].

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412); for distillation Beyer
    et al. 2022, "Knowledge distillation: A good teacher is patient and consistent" (arXiv:2106.05237).
    """

    batches: Augmented

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch
        from torch.nn.functional import one_hot

        shares = torch.distributions.Beta(MIXED, MIXED)
        for x, labels in self.batches:
            share, other = shares.sample((len(x), 1)), torch.randperm(len(x))
            known = one_hot(labels, 10).float()
            wide = share[..., None, None]
            yield wide * x + (1 - wide) * x[other], share * known + (1 - share) * known[other]


def tuned(epochs: int, path: str) -> dict[str, float]:
    """The float net trained further against the labels, as long as the smaller one; written to `path`."""
    from fewbits.training import supervised

    net = models.cifar_resnet_module(20)
    seconds = _fit(net, Mixed(_batches()), epochs, supervised())
    _write(net, path)
    return {"seconds": seconds}


def pruned(epochs: int, calibration: str, path: str, rounded: str) -> dict[str, float]:
    """The smaller net, taught by the float one, written to `path`; trained on with rounding, to `rounded`."""
    from fewbits.training import count_macs, distillation, fit, qat

    begin = time.perf_counter()
    net, plain = models.cifar_resnet_module(20), _batches()
    smaller = _smaller(net, plain, Mixed(plain), epochs)
    seconds = time.perf_counter() - begin
    _write(smaller, path)
    student = qat(smaller, "w8a8", calibration)
    fit(student, plain, objective=distillation(net, weight=1.0), **ROUNDING)  # type: ignore[arg-type]
    student.export(rounded)
    example = plain.x[:2]
    return {
        "seconds": seconds,
        "rounded_seconds": time.perf_counter() - begin,
        "macs": count_macs(smaller, example) / count_macs(net, example),
    }


def kept_apart(epochs: int, mixed: bool) -> float:
    """Top-1 in percent on the last APART training images of a smaller net that was made with the others."""
    import torch

    net, batches = models.cifar_resnet_module(20), _batches()
    seen = replace(batches, x=batches.x[:-APART], labels=batches.labels[:-APART])
    smaller = _smaller(net, seen, Mixed(seen) if mixed else seen, epochs).eval()
    with torch.no_grad():
        right = smaller(batches.x[-APART:]).argmax(1) == batches.labels[-APART:]
    return 100 * float(right.double().mean())


def _smaller(net: nn.Module, plain: Augmented, batches: Augmented | Mixed, epochs: int) -> nn.Module:
    """Blocks left out, taught, channels left out, taught; `plain` tells what channels are worth."""
    import torch

    from fewbits.training import distillation, prune_blocks, prune_channels

    example, taught = plain.x[:2], distillation(net, weight=1.0)
    torch.manual_seed(0)
    scored = list(itertools.islice(plain, SCORED))
    shallow = prune_blocks(net, example, BLOCKS)
    _fit(shallow, batches, BETWEEN, taught)
    smaller = prune_channels(
        shallow,
        example,
        channels=NARROWED,
        importance="taylor",
        data=scored,
        multiple=MULTIPLE,
        exclude=KEPT,
    )
    _fit(smaller, batches, epochs - BETWEEN, taught)
    return smaller


def _fit(net: nn.Module, batches: Augmented | Mixed, epochs: int, objective: Any) -> float:
    import torch

    from fewbits.training import fit

    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    done = fit(net, batches, epochs=epochs, objective=objective, optimizer=optimizer, precision="bf16")
    return sum(one.seconds for one in done)


def _write(net: nn.Module, path: str) -> None:
    partial = Path(path).with_name(f"partial-{Path(path).name}")
    models._export_images(net, 32, partial)
    os.replace(partial, path)


if __name__ == "__main__":
    import sys

    for mixed in (True, False):
        print("mixed" if mixed else "as they are", f"{kept_apart(int(sys.argv[1]), mixed):.2f} %", flush=True)
