"""ResNet-20 trained further on CIFAR-10, in float and with rounding, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import data, models
from bench.process import peak_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 128
SCORED = 250  # images at a time
SHIFT = 4  # pixels to each side


@dataclass(frozen=True)
class Augmented:
    """Batches in random order, images mirrored and shifted at random: x float32 [n, 3, 32, 32], labels int64 [n]."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        for chosen in torch.randperm(len(self.x))[: len(self) * BATCH].split(BATCH):
            mirrored = torch.rand(BATCH) < 0.5
            x = torch.where(mirrored[:, None, None, None], self.x[chosen].flip(3), self.x[chosen])
            wide = torch.nn.functional.pad(x, (SHIFT,) * 4)
            shifts = torch.randint(0, 2 * SHIFT + 1, (BATCH, 2)).tolist()
            cut = [
                one[:, row : row + 32, column : column + 32]
                for one, (row, column) in zip(wide, shifts, strict=True)
            ]
            yield torch.stack(cut), self.labels[chosen]


def in_float(epochs: int, lr: float, precision: str, samples: str, out: str) -> dict[str, float]:
    """Fine-tune the float net against the labels; its logits for `samples` go to `out` (.npy)."""
    from fewbits.training import fit

    net, batches = models.cifar_resnet_module(20), training_batches()
    before = _resident()
    done = fit(net, batches, epochs=epochs, lr=lr, precision=precision)
    grown = peak_bytes() - before
    np.save(out, _logits(net, samples))
    return {"seconds": sum(one.seconds for one in done), "loss": done[-1].loss, "grown_mb": grown / 1e6}


def with_rounding(
    recipe: str, effort: str, epochs: int, lr: float, calibration: str, samples: str, path: str, out: str
) -> dict[str, float]:
    """Train with rounding, taught by the float net: the file goes to `path`, the module's logits to `out`."""
    from fewbits.training import distillation, fit, qat

    net, batches = models.cifar_resnet_module(20), training_batches()
    begin, used = time.perf_counter(), time.process_time()
    student = qat(net, recipe, calibration, effort=effort)
    started = time.perf_counter() - begin
    fit(student, batches, epochs=epochs, lr=lr, objective=distillation(net, weight=1.0))
    student.export(path)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - used
    np.save(out, _logits(student.double(), samples))  # engines add integers, without an error; float32 would
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "start_seconds": started}


def stepper(precision: str, threads: int) -> Callable[[], None]:
    """One step of training in float, to be timed."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    net = models.cifar_resnet_module(20).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)
    x, labels = next(iter(training_batches()))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training_batches() -> Augmented:
    import torch

    x, labels = data.cifar_training()
    return Augmented(torch.from_numpy(x), torch.from_numpy(labels))


def _logits(module: nn.Module, samples: str) -> Any:
    import torch

    module.eval()
    with np.load(Path(samples)) as arrays, torch.no_grad():
        x = torch.from_numpy(arrays["x"]).to(next(module.parameters()).dtype)
        return torch.cat([module(part) for part in x.split(SCORED)]).numpy()


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
