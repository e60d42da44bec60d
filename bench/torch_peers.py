"""MiniLM in PyTorch: as it is, and as optimum-quanto and torchao compress it. Batch 1, eager."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import models
from bench.data import stream


def _float(model: Any, calibration: Path) -> None:
    """As it is."""


def _quanto_weights(model: Any, calibration: Path) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


def _quanto_static(model: Any, calibration: Path) -> None:
    from optimum.quanto import Calibration, freeze, qint8, quantize

    quantize(model, weights=qint8, activations=qint8)
    with Calibration():
        for sample in stream(calibration):
            _run(model, sample)
    freeze(model)


def _torchao_weights(model: Any, calibration: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())


def _torchao_dynamic(model: Any, calibration: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


VARIANTS: dict[str, Callable[[Any, Path], None]] = {
    "float": _float,
    "quanto_weights": _quanto_weights,
    "quanto_static": _quanto_static,
    "torchao_weights": _torchao_weights,
    "torchao_dynamic": _torchao_dynamic,
}


def timed(variant: str, calibration: str, sample: str, threads: int) -> Callable[[], object]:
    """The function to time: one run of a variant on the first row of the `.npz` `sample`."""
    model = _model(variant, calibration, threads)
    feeds = next(stream(Path(sample)))
    return lambda: _run(model, feeds)


def outputs(variant: str, calibration: str, samples: str, out: str, threads: int) -> int:
    """Write the outputs for each row of `samples` to `out` (.npy); answers the model's size in bytes."""
    model = _model(variant, calibration, threads)
    np.save(out, np.concatenate([_run(model, sample) for sample in stream(Path(samples))]))
    buffer = io.BytesIO()
    import torch

    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _model(variant: str, calibration: str, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    model = models.minilm_module()
    VARIANTS[variant](model, Path(calibration))
    return model


def _run(model: Any, sample: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in sample.items()}).numpy()
