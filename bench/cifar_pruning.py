"""ResNet-20 made smaller and taught by what it was: the jobs, each in a process of its own."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import models
from bench.cifar_mixing import Mixed, blend, paste
from bench.cifar_training import Augmented, training_batches

if TYPE_CHECKING:
    from torch import nn

BLOCKS = ("layer1.0", "layer1.1", "layer2.2")
"""The three that 2,000 training images miss least, one at a time."""
BETWEEN = 6  # epochs that bring back what the blocks did, so that it can be told what channels are worth
NARROWED = 0.5  # of the channels that stay
KEPT = ("layer1.*", "layer2.*")  # as they are: most of what is left to win is in the last blocks' weights
MULTIPLE = 16  # channels, in which ONNX Runtime computes with AVX-512
SCORED = 16  # batches that tell what channels are worth
WAYS = (blend, paste)  # of mixing images; see bench.cifar_apart
RATE, DECAY = 0.05, 1e-4
ROUNDING = {"epochs": 2, "lr": 1e-4}


def tuned(epochs: int, path: str) -> dict[str, float]:
    """The float net trained further against the labels, as long as the smaller one; written to `path`."""
    from fewbits.training import supervised

    net = models.cifar_resnet_module(20)
    seconds = _fit(net, Mixed(training_batches(), WAYS), epochs, supervised())
    _write(net, path)
    return {"seconds": seconds}


def pruned(epochs: int, calibration: str, path: str, rounded: str) -> dict[str, float]:
    """The smaller net, taught by the float one, written to `path`; trained on with rounding, to `rounded`."""
    from fewbits.training import count_macs, distillation, fit, qat

    begin = time.perf_counter()
    net, plain = models.cifar_resnet_module(20), training_batches()
    small = smaller(net, plain, Mixed(plain, WAYS), epochs)
    seconds = time.perf_counter() - begin
    _write(small, path)
    student = qat(small, "w8a8", calibration)
    fit(student, plain, objective=distillation(net, weight=1.0), **ROUNDING)  # type: ignore[arg-type]
    student.export(rounded)
    example = plain.x[:2]
    return {
        "seconds": seconds,
        "rounded_seconds": time.perf_counter() - begin,
        "macs": count_macs(small, example) / count_macs(net, example),
    }


def smaller(net: nn.Module, plain: Augmented, batches: Augmented | Mixed, epochs: int) -> nn.Module:
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
