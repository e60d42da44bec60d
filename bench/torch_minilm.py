"""MiniLM in PyTorch with weights in few bits, as it is and as peers and fewbits make it; jobs with JSON values."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import models
from bench.torch_cifar import quanto_weights

ROWS = 128


def outputs(variant: str, samples: dict[str, str]) -> int:
    """Write the embeddings of a variant, or of a file that fewbits saved; answers its bytes.

    Args:
        variant: one of VARIANTS, or the path of a `.safetensors`.
        samples: paths of what is embedded (`.npz`), and of where that goes (`.npy`).
    """
    import torch

    path = Path(variant)
    if path.suffix == ".safetensors":
        import fewbits as fb

        model, size = fb.load(path, arch="bench.models:minilm_module"), path.stat().st_size
    else:
        model = models.minilm_module()
        VARIANTS[variant](model)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        size = buffer.tell()
    for source, out in samples.items():
        np.save(out, _embedded(model, Path(source)))
    return size


def made(recipe: str, effort: str, calibration: str, out: str, threads: int) -> float:
    """Quantize with fewbits and save; answers the seconds from the float module to the file."""
    import torch

    import fewbits as fb

    torch.set_num_threads(threads)
    batches = torch.load(calibration)
    model = models.minilm_module()
    start = time.perf_counter()
    fb.save(fb.quantize(model, recipe, batches, effort=effort), out)
    return time.perf_counter() - start


def _embedded(model: Any, samples: Path) -> np.ndarray:
    """Row by row what a model gives; rows of about one length are run together, without the padding behind them."""
    import torch

    with np.load(samples) as arrays:
        ids, mask = (torch.from_numpy(arrays[name]) for name in ("input_ids", "attention_mask"))
    order = mask.sum(dim=1).argsort(stable=True)
    found = None
    with torch.no_grad():
        for rows in order.split(ROWS):
            longest = int(mask[rows].sum(dim=1).max())
            part = model(input_ids=ids[rows, :longest], attention_mask=mask[rows, :longest])
            found = part.new_empty(len(ids), part.shape[1]) if found is None else found
            found[rows] = part
    assert found is not None
    return found.numpy()


def _float(model: Any) -> None:
    """As it is."""


VARIANTS: dict[str, Callable[[Any], None]] = {
    "float": _float,
    "quanto4": quanto_weights("qint4"),
    "quanto2": quanto_weights("qint2"),
}
