"""Modules in PyTorch, as they are and as fewbits and its peers make them: entrants, and their jobs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import process
from bench.keep import kept, version
from bench.paths import cached
from bench.subjects import SUBJECTS
from bench.table import THREADS, Entrant, Runnable
from fewbits.measure.latency import CallableContestant

FP32, BF16 = "PyTorch fp32", "PyTorch bf16"
QUANTO, QUANTO_4 = "optimum-quanto int8 weights", "optimum-quanto int4 weights"
TORCHAO, TORCHAO_DYNAMIC = "torchao int8 weights", "torchao int8 dynamic"
TORCH_DYNAMIC = "torch.ao int8 dynamic"


def _float(model: Any) -> Any:
    return model


def _bf16(model: Any) -> Any:
    import torch

    return model.to(torch.bfloat16)


def _quanto(bits: str) -> Callable[[Any], Any]:
    def convert(model: Any) -> Any:
        from optimum import quanto

        quanto.quantize(model, weights=getattr(quanto, bits))
        quanto.freeze(model)
        return model

    return convert


def _torchao(config: str) -> Callable[[Any], Any]:
    def convert(model: Any) -> Any:
        from torchao import quantization

        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return convert


def _torch_dynamic(model: Any) -> Any:
    import torch

    layers = {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU}
    holder = torch.nn.ModuleDict({"model": model})  # it changes parts of modules, and no module itself
    return torch.ao.quantization.quantize_dynamic(holder, layers, dtype=torch.qint8)["model"]


PEERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    FP32: ("torch", _float),
    BF16: ("torch", _bf16),
    QUANTO: ("optimum-quanto", _quanto("qint8")),
    QUANTO_4: ("optimum-quanto", _quanto("qint4")),
    TORCHAO: ("torchao", _torchao("Int8WeightOnlyConfig")),
    TORCHAO_DYNAMIC: ("torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
    TORCH_DYNAMIC: ("torch", _torch_dynamic),
}
"""By name: the package that makes it, and how."""


def peer(name: str, subject: str) -> Entrant:
    """A subject as one of the peers makes it; its outputs are kept."""
    package, _ = PEERS[name]

    def make() -> Runnable:
        arguments = {"name": name, "subject": subject, "threads": THREADS}
        outputs = kept("outputs", subject, ".npy", (), name=name, version=version(package))
        done = outputs.with_suffix(".json")
        if not done.is_file():
            size = process.call("bench.in_torch:peer_outputs", out=str(outputs), **arguments).value
            done.write_text(str(size))
        contestant = CallableContestant(name, "bench.in_torch:peer_timed", arguments)
        return Runnable(contestant, int(done.read_text()), outputs)

    return Entrant(name, "float" if name == FP32 else "peer", make)


def fewbits(recipe: str, subject: str) -> Entrant:
    """A subject quantized by fewbits, saved, and loaded again."""
    name = f"fewbits {recipe}"

    def make() -> Runnable:
        saved = cached(f"modules/{subject}-{recipe}.safetensors")
        outputs = saved.with_suffix(".npy")
        process.call(
            "bench.in_torch:quantize", subject=subject, recipe=recipe, path=str(saved), threads=THREADS
        )
        arguments = {"path": str(saved), "subject": subject, "threads": THREADS}
        process.call("bench.in_torch:saved_outputs", out=str(outputs), **arguments)
        contestant = CallableContestant(name, "bench.in_torch:saved_timed", arguments)
        return Runnable(contestant, saved.stat().st_size, outputs)

    return Entrant(name, "fewbits", make)


def peer_timed(name: str, subject: str, threads: int) -> Callable[[], object]:
    """The function to time of a peer's module."""
    return _timed(_peer(name, subject, threads), subject)


def peer_outputs(name: str, subject: str, out: str, threads: int) -> int:
    """Write a peer's outputs (.npy); answers the bytes of its state."""
    import torch

    model = _peer(name, subject, threads)
    _write(model, subject, out)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def quantize(subject: str, recipe: str, path: str, threads: int) -> None:
    """Quantize a subject and save it."""
    import torch

    import fewbits as fb

    torch.set_num_threads(threads)
    partial = f"{path}.partial"
    fb.save(fb.quantize(SUBJECTS[subject].make(), recipe), partial)
    os.replace(partial, path)


def saved_timed(path: str, subject: str, threads: int) -> Callable[[], object]:
    """The function to time of a module that fewbits saved."""
    return _timed(_saved(path, subject, threads), subject)


def saved_outputs(path: str, subject: str, out: str, threads: int) -> None:
    """Write the outputs (.npy) of a module that fewbits saved."""
    _write(_saved(path, subject, threads), subject, out)


def _peer(name: str, subject: str, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return PEERS[name][1](SUBJECTS[subject].make())


def _saved(path: str, subject: str, threads: int) -> Any:
    import torch

    import fewbits as fb

    torch.set_num_threads(threads)
    return fb.load(path, arch=SUBJECTS[subject].make).eval()


def _timed(model: Any, subject: str) -> Callable[[], object]:
    import torch

    def run() -> object:
        with torch.no_grad():
            return SUBJECTS[subject].run(model)

    return run


def _write(model: Any, subject: str, out: str) -> None:
    import torch

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        np.save(out, SUBJECTS[subject].outputs(model))
