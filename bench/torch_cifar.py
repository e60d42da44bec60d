"""The CIFAR nets in PyTorch with weights in few bits, as peers make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import models

BATCH = 250


def outputs(depth: int, variant: str, samples: str, out: str) -> None:
    """Write the logits of a variant for the images in the `.npz` `samples` to `out` (.npy)."""
    import torch

    model = models.cifar_resnet_module(depth)
    VARIANTS[variant](model)
    with np.load(Path(samples)) as arrays, torch.no_grad():
        parts = torch.from_numpy(arrays["x"]).split(BATCH)
        np.save(out, torch.cat([model(part) for part in parts]).numpy())


def _nearest(bits: int) -> Callable[[Any], None]:
    """The weight of every layer rounded to nearest, a step per channel that reaches the largest."""

    def compress(model: Any) -> None:
        import torch

        most = 2 ** (bits - 1) - 1
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                    rows = layer.weight.flatten(1)
                    step = rows.abs().amax(dim=1, keepdim=True) / most
                    rows.copy_((rows / step).round() * step)

    return compress


def quanto_weights(name: str) -> Callable[[Any], None]:
    """What brings a module's weights to one of quanto's types."""

    def compress(model: Any) -> None:
        from optimum import quanto

        quanto.quantize(model, weights=getattr(quanto, name))
        quanto.freeze(model)

    return compress


VARIANTS: dict[str, Callable[[Any], None]] = {
    "nearest4": _nearest(4),
    "nearest3": _nearest(3),
    "nearest2": _nearest(2),
    "quanto4": quanto_weights("qint4"),
    "quanto2": quanto_weights("qint2"),
}
