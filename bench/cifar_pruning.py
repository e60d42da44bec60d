"""ResNet-20 made smaller and taught by what it was: the jobs, each in a process of its own."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import models
from bench.cifar_training import Augmented, _batches

if TYPE_CHECKING:
    from torch import nn

BLOCKS = (
    "layer1.1",
    "layer1.2",
)  # of 16 channels: engines cannot compute with fewer at a time, only with less often
MACS = 0.66  # before those are left out, while what channels are worth can still be told
MULTIPLE = 16
SCORED = 8  # batches that tell what channels are worth
RATE, DECAY = 0.02, 1e-4
ROUNDING = {"epochs": 2, "lr": 1e-4}


def tuned(epochs: int, path: str) -> dict[str, float]:
    """The float net trained further against the labels, as long as the smaller one; written to `path`."""
    from fewbits.training import supervised

    net = models.cifar_resnet_module(20)
    seconds = _fit(net, _batches(), epochs, supervised())
    _write(net, path)
    return {"seconds": seconds}


def pruned(epochs: int, calibration: str, path: str, rounded: str) -> dict[str, float]:
    """The smaller net, taught by the float one, written to `path`; trained on with rounding, to `rounded`."""
    import torch

    from fewbits.training import count_macs, distillation, fit, prune_blocks, prune_channels, qat

    begin = time.perf_counter()
    net, batches = models.cifar_resnet_module(20), _batches()
    example = batches.x[:2]
    torch.manual_seed(0)
    scored = list(itertools.islice(batches, SCORED))
    narrow = prune_channels(net, example, macs=MACS, importance="taylor", data=scored, multiple=MULTIPLE)
    smaller = prune_blocks(narrow, example, BLOCKS)
    _fit(smaller, batches, epochs, distillation(net))
    seconds = time.perf_counter() - begin
    _write(smaller, path)
    student = qat(smaller, "w8a8", calibration)
    fit(student, batches, objective=distillation(net), **ROUNDING)  # type: ignore[arg-type]
    student.export(rounded)
    return {
        "seconds": seconds,
        "rounded_seconds": time.perf_counter() - begin,
        "macs": count_macs(smaller, example) / count_macs(net, example),
    }


def _fit(net: nn.Module, batches: Augmented, epochs: int, objective: Any) -> float:
    import torch

    from fewbits.training import fit

    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=DECAY)
    done = fit(net, batches, epochs=epochs, objective=objective, optimizer=optimizer, precision="bf16")
    return sum(one.seconds for one in done)


def _write(net: nn.Module, path: str) -> None:
    partial = Path(path).with_name(f"partial-{Path(path).name}")
    models._export_images(net, 32, partial)
    os.replace(partial, path)
