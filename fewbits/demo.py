"""The main job on real data without a download: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.compress import Progress, Result, compress
from fewbits.ending import Say
from fewbits.errors import MissingExtraError

if TYPE_CHECKING:
    from torch import nn

TRAINED, CALIBRATED = 1200, 256  # samples to train on, of which some calibrate; the other 597 score
EPOCHS = 25


def demo(
    out: str | Path,
    *,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> Result:
    """Train a small residual CNN on the digits, export it, and compress it on every engine installed.

    Raises:
        MissingExtraError: scikit-learn, which brings the digits, is not installed.
    """
    x, labels = digits()
    progress("train", 0, EPOCHS)
    model = train(network, x[:TRAINED], labels[:TRAINED], progress)
    with tempfile.TemporaryDirectory(prefix="fewbits-demo-") as folder:
        path = Path(folder) / "digits.onnx"
        export(model, path)
        test = {"image": x[TRAINED:], "labels": labels[TRAINED:]}
        return compress(
            path,
            {"image": x[:CALIBRATED]},
            eval=test,
            recipe="auto",
            threads=threads,
            out=out,
            progress=progress,
            say=say,
        )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits in a fixed random order: float32 [1797, 1, 8, 8] from 0 to 1, and their classes, int64 [1797].

    Raises:
        MissingExtraError: scikit-learn, which brings them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the demo needs scikit-learn; run: pip install 'fewbits[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)[order], labels[order]


def network() -> nn.Module:
    """A residual CNN of about 300,000 parameters for 8 x 8 images and ten classes."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(channels)

        def forward(self, x):  # type: ignore[no-untyped-def]
            y = self.norm1(self.conv1(x)).relu()
            return (x + self.norm2(self.conv2(y))).relu()

    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.ReLU(),
        Block(64),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        Block(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def train(
    network: Callable[[], nn.Module], x: np.ndarray, labels: np.ndarray, progress: Progress
) -> nn.Module:
    """Train a network for a few seconds; the same data give the same model on the same machine."""
    import torch

    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels).long()
    for epoch in range(EPOCHS):
        progress("train", epoch, EPOCHS)
        for batch in torch.randperm(len(inputs)).split(64):
            shifted = inputs[batch].roll(tuple(torch.randint(-1, 2, (2,)).tolist()), dims=(2, 3))
            loss = torch.nn.functional.cross_entropy(model(shifted), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the network as ONNX with a dynamic batch; the exporter's own chatter is kept quiet."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.save(path)
