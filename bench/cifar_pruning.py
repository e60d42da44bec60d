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

BLOCKS = 2
BETWEEN = 4  # epochs that bring back what the blocks did, so that it can be told what channels are worth
MACS = 0.499
MULTIPLE = 16  # channels, in which ONNX Runtime computes with AVX-512
SCORED = 16  # batches that tell what blocks and channels are worth
RATE, DECAY = 0.02, 1e-4
ROUNDING = {"epochs": 2, "lr": 1e-4}


def tuned(epochs: int, path: str) -> dict[str, float]:
    """The float net trained further against the labels, as long as the smaller one; written to `path`."""
    from fewbits.training import supervised

    net = models.cifar_resnet_module(20)
    seconds = _fit(net, _batches(), epochs, supervised())
    _write(net, path)
    return {"seconds": seconds}


def pruned(epochs: int, calibration: str, path: str, rounded: str) -> dict[str, Any]:
    """The smaller net, taught by the float one, written to `path`; trained on with rounding, to `rounded`."""
    import torch

    from fewbits.training import (
        count_macs,
        distillation,
        fit,
        least_missed_blocks,
        prune_blocks,
        prune_channels,
        qat,
    )

    begin = time.perf_counter()
    net, batches = models.cifar_resnet_module(20), _batches()
    example, taught = batches.x[:2], distillation(net, weight=1.0)
    torch.manual_seed(0)
    scored = list(itertools.islice(batches, SCORED))
    blocks = least_missed_blocks(net, example, BLOCKS, scored, objective=taught)
    shallow = prune_blocks(net, example, blocks)
    _fit(shallow, batches, BETWEEN, taught)
    smaller = prune_channels(
        shallow,
        example,
        macs=MACS * count_macs(net, example) / count_macs(shallow, example),
        importance="taylor",
        data=scored,
        multiple=MULTIPLE,
    )
    _fit(smaller, batches, epochs - BETWEEN, taught)
    seconds = time.perf_counter() - begin
    _write(smaller, path)
    student = qat(smaller, "w8a8", calibration)
    fit(student, batches, objective=taught, **ROUNDING)  # type: ignore[arg-type]
    student.export(rounded)
    return {
        "seconds": seconds,
        "rounded_seconds": time.perf_counter() - begin,
        "blocks": " ".join(blocks),
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
