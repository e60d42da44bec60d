"""What mixing images brings on training images kept apart: `python -m bench.cifar_apart EPOCHS`.

The float net knows those images, and what is made of it remembers some of that: 96 % are right, of the test images
88 %. So they are disturbed as none is in training, until the float net is about as good on them as on the test images.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, kl_div

from bench import models
from bench.cifar_mixing import Mixed, blend, paste
from bench.cifar_pruning import smaller
from bench.cifar_training import SCORED, training_batches

APART = 2000  # of the 10,000
VIEWS = 5  # of each, disturbed at random
DEGREES, ZOOM, SHIFT, LIGHT = 12.6, 0.16, 0.063, 0.21  # at most; shifts in halves of the width
WAYS = {
    "as they are": (),
    "blended": (blend,),
    "pasted": (paste,),
    "blended and pasted in turn": (blend, paste),
}


def measure(epochs: int) -> None:
    """Print a row for each way: made and taught with the other images, scored on those kept apart."""
    net, batches = models.cifar_resnet_module(20), training_batches()
    seen = replace(batches, x=batches.x[:-APART], labels=batches.labels[:-APART])
    x, labels = batches.x[-APART:], batches.labels[-APART:].repeat(VIEWS)
    views = _disturbed(x)
    wanted = _logits(net, views)
    print(f"float32: top-1 {_top1(wanted, labels):.2f} %", flush=True)
    for name, ways in WAYS.items():
        got = _logits(smaller(net, seen, Mixed(seen, ways) if ways else seen, epochs), views)
        divergence = kl_div(got.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        print(f"{name}: top-1 {_top1(got, labels):.2f} %, divergence {divergence:.4f}", flush=True)


def _disturbed(x: Tensor) -> Tensor:
    """VIEWS of every image, one set behind the other: turned, scaled, shifted, in other light."""
    torch.manual_seed(0)
    x = x.repeat(VIEWS, 1, 1, 1)

    def drawn(most: float, *shape: int) -> Tensor:
        return most * (2 * torch.rand(len(x), *shape) - 1)

    angle, zoom = drawn(math.radians(DEGREES)), drawn(ZOOM).exp()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    move = torch.cat([zoom[:, None, None] * turn, drawn(SHIFT, 2, 1)], dim=2)
    grid = affine_grid(move, list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return moved * drawn(LIGHT, 1, 1, 1).exp() + drawn(LIGHT, 1, 1, 1)


def _top1(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(SCORED)])


if __name__ == "__main__":
    measure(int(sys.argv[1]))
