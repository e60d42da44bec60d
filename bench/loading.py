"""What loads a saved 4-bit module, as functions to time: fewbits, its peers, and what nobody can do without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.subjects import SUBJECTS

Load = Callable[[], object]


def least(path: str, subject: str, threads: int) -> Load:
    """Reads the bytes of a file, and builds the float module."""
    make = _maker(subject, threads)
    return lambda: (Path(path).read_bytes(), make())


def fewbits(path: str, subject: str, threads: int) -> Load:
    """``fewbits.load``."""
    import fewbits as fb

    make = _maker(subject, threads)
    return lambda: fb.load(path, arch=make)


def least_empty(path: str, subject: str, threads: int) -> Load:
    """Reads the bytes of a file, and builds the module without values."""
    make = _empty(subject, threads)
    return lambda: (Path(path).read_bytes(), make())


def fewbits_empty(path: str, subject: str, threads: int) -> Load:
    """``fewbits.load`` into a module without values."""
    import fewbits as fb

    make = _empty(subject, threads)
    return lambda: fb.load(path, arch=make)


def quanto(path: str, subject: str, threads: int) -> Load:
    """optimum-quanto: its map of what is quantized, its tensors, and ``requantize`` of a float module."""
    from optimum.quanto import requantize
    from safetensors.torch import load_file

    make = _maker(subject, threads)

    def load() -> object:
        model = make()
        requantize(model, load_file(path), json.loads(Path(f"{path}.json").read_text()))
        return model

    return load


def torchao(path: str, subject: str, threads: int) -> Load:
    """torchao: its tensors, which its users keep in pickles, assigned to a float module."""
    import torch
    import torchao.quantization  # noqa: F401 - the classes in the pickle

    make = _maker(subject, threads)

    def load() -> object:
        model = make()
        model.load_state_dict(torch.load(path, weights_only=True), assign=True)
        return model

    return load


def save_quanto(path: str, subject: str, threads: int) -> None:
    """Write a subject in 4 bits as optimum-quanto's documentation tells."""
    from optimum.quanto import freeze, qint4, quantization_map, quantize
    from safetensors.torch import save_model

    model = _maker(subject, threads)()
    quantize(model, weights=qint4)
    freeze(model)
    save_model(model, path)
    Path(f"{path}.json").write_text(json.dumps(quantization_map(model)))


def save_torchao(path: str, subject: str, threads: int) -> None:
    """Write a subject in 4 bits by groups of 128 as torchao's documentation tells."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model = _maker(subject, threads)()
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(128)))
    torch.save(model.state_dict(), path)


def _maker(subject: str, threads: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(threads)
    return SUBJECTS[subject].make


def _empty(subject: str, threads: int) -> Callable[[], Any]:
    import torch

    make = _maker(subject, threads)

    def build() -> Any:
        with torch.device("meta"):
            return make()

    return build
