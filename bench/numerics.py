"""The numeric core beside its peers, in one run: `python -m bench.numerics [TABLE ...] [--blocks N]`.

Each contestant has its own worker process with the same two threads; blocks of runs alternate between them
and idle workers wait on a pipe. Speeds are of float32 input, medians over blocks with the lowest and highest.
Extra memory is what a worker's resident set grows by at its peak, beside its input and result.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

THREADS = 2
SIDE = 4096
INPUT_BYTES = SIDE * SIDE * 4


@dataclass(frozen=True)
class Work:
    """One table: who takes part, on how many matrices a block, and what must be reached (None: nothing)."""

    name: str
    contestants: tuple[str, ...]
    matrices: int = 1
    rival: str | None = None
    ratio: float = 0
    memory_share: float | None = None


OTHERS: dict[str, dict[str, Any]] = {
    "int8 by channel": {"qtype": "int8", "channel_axis": 0},
    "uint8": {"qtype": "uint8"},
    "int4 by 64, mse": {"qtype": "int4", "channel_axis": 0, "group_size": 64, "search": "mse"},
    "fp8_e4m3fn by channel": {"qtype": "fp8_e4m3fn", "channel_axis": 0},
    "mxfp4": {"qtype": "mxfp4", "channel_axis": 0},
    "nvfp4": {"qtype": "nvfp4", "channel_axis": 0},
    "nf4 by 64": {"qtype": "nf4", "channel_axis": 0, "group_size": 64},
    "ternary by channel": {"qtype": "ternary", "channel_axis": 0},
    "binary by channel": {"qtype": "binary", "channel_axis": 0},
    "codebook8": {"qtype": "codebook8"},
    "codebook4 by channel": {"qtype": "codebook4", "channel_axis": 0},
}
WORKS = (
    Work(
        "int4, groups of 128, nearest, packed",
        ("clone", "naive", "nncf", "quanto", "nearest"),
        matrices=8,
        rival="nncf",
        ratio=6,
        memory_share=0.25,
    ),
    Work("4 bits, groups of 64, least error", ("hqq", "least_error"), 1, "hqq", 25, 0.25),
    Work("16-entry codebook of one tensor", ("sklearn", "codebook"), 1, "sklearn", 50, 1.0),
    Work("other formats and searches", tuple(OTHERS)),
)
OURS = ("nearest", "least_error", "codebook", *OTHERS)
SLOW = ("hqq", "sklearn")  # seconds a run: every block of theirs is one run


class Run:
    """What a worker can do with a matrix: the timed call, and the values its result stands for."""

    def __init__(self, call: Callable[[Any], Any], values: Callable[[Any], Any], version: str = "") -> None:
        self.call, self.values, self.version = call, values, version


def clone() -> Run:
    return Run(lambda x: x.clone(), lambda result: result)


def naive() -> Run:
    """What one writes first: whole-tensor expressions."""
    import torch

    def call(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups = x.view(-1, 128)
        scale = groups.abs().amax(dim=1, keepdim=True) / 7
        codes = torch.clamp(torch.round(groups / scale), -7, 7).to(torch.int8)
        return (codes[:, ::2] & 15) | (codes[:, 1::2] << 4), scale

    def values(result: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        packed, scale = result
        codes = torch.stack([(packed << 4) >> 4, packed >> 4], dim=-1).flatten(1)
        return (codes * scale).view(SIDE, SIDE)

    return Run(call, values)


def nncf() -> Run:
    from nncf import __version__
    from nncf.parameters import CompressWeightsMode
    from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig
    from nncf.quantization.algorithms.weight_compression.weight_lowering import do_integer_quantization
    from nncf.tensor import Tensor
    from nncf.torch.quantization.quantize_functions import pack_int4, unpack_int4

    config = WeightCompressionConfig(mode=CompressWeightsMode.INT4_SYM, group_size=128)

    def call(x: Any) -> Any:
        compressed = do_integer_quantization(Tensor(x), config, reduction_axes=(1,))
        return pack_int4(compressed.tensor.data), compressed.scale.data

    def values(result: Any) -> Any:
        packed, scale = result
        return (unpack_int4(packed).view(SIDE, -1, 128) * scale).view(SIDE, SIDE)

    return Run(call, values, __version__)


def quanto() -> Run:
    from importlib.metadata import version

    from optimum.quanto import MaxOptimizer, qint4
    from optimum.quanto.tensor import quantize_weight

    def call(x: Any) -> Any:
        scale, shift = MaxOptimizer()(x, qint4, 0, 128)
        return quantize_weight(x, qint4, 0, scale, shift, group_size=128, optimized=False)

    return Run(call, lambda result: result.dequantize(), version("optimum-quanto"))


def hqq() -> Run:
    import torch
    from hqq.core.quantize import Quantizer

    hqq_module = importlib.import_module("hqq")

    def call(x: torch.Tensor) -> Any:
        return Quantizer.quantize(
            x, nbits=4, group_size=64, optimize=True, axis=1, device="cpu", compute_dtype=torch.float32
        )

    return Run(call, lambda result: Quantizer.dequantize(*result), hqq_module.__version__)


def sklearn() -> Run:
    import numpy as np
    import torch
    from sklearn import __version__
    from sklearn.cluster import KMeans

    def call(x: torch.Tensor) -> Any:
        return KMeans(16, n_init=1, random_state=0).fit(x.numpy().reshape(-1, 1))

    def values(fitted: Any) -> torch.Tensor:
        levels = fitted.cluster_centers_[:, 0].astype(np.float32)
        return torch.from_numpy(levels[fitted.labels_]).view(SIDE, SIDE)

    return Run(call, values, __version__)


def nearest() -> Run:
    from fewbits import __version__
    from fewbits.numerics import quantize, unpack

    def call(x: Any) -> Any:
        q = quantize(x, "int4", channel_axis=0, group_size=128)
        return q, q.packed()

    def values(result: Any) -> Any:
        q, packed = result
        return replace(q, codes=unpack(packed, "int4", (SIDE, SIDE))).dequantize()

    return Run(call, values, __version__)


def least_error() -> Run:
    from fewbits import __version__
    from fewbits.numerics import quantize

    def call(x: Any) -> Any:
        return quantize(x, "uint4", channel_axis=0, group_size=64, search="least_squares")

    return Run(call, lambda q: q.dequantize(), __version__)


def codebook() -> Run:
    from fewbits import __version__
    from fewbits.numerics import quantize

    return Run(lambda x: quantize(x, "codebook4"), lambda q: q.dequantize(), __version__)


def other(name: str) -> Run:
    from fewbits import __version__
    from fewbits.numerics import quantize

    return Run(lambda x: quantize(x, **OTHERS[name]), lambda q: q.dequantize(), __version__)


RUNS: dict[str, Callable[[], Run]] = {
    **{f.__name__: f for f in (clone, naive, nncf, quanto, hqq, sklearn, nearest, least_error, codebook)},
    **{name: partial(other, name) for name in OTHERS},
}


def serve(name: str) -> None:
    """A worker: one JSON line a request, one a reply; whatever a library prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        import torch

        torch.set_num_threads(THREADS)
        run = RUNS[name]()
    except ImportError as missing:
        print(json.dumps({"missing": str(missing)}), file=replies, flush=True)
        return
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(SIDE, SIDE, generator=generator) * 0.02 for _ in range(json.loads(input()))]
    print(json.dumps({"version": run.version}), file=replies, flush=True)
    for request in sys.stdin:
        reply = memory(run, matrices[0]) if request.strip() == "memory" else timed(run, matrices)
        print(json.dumps(reply), file=replies, flush=True)


def timed(run: Run, matrices: list[Any]) -> dict[str, float]:
    start = time.perf_counter()
    for matrix in matrices:
        run.call(matrix)
    return {"seconds": time.perf_counter() - start}


def memory(run: Run, matrix: Any) -> dict[str, float | None]:
    """The error of a result, and the growth of the resident set while it was made, less the result itself."""
    run.call(matrix[:128])  # what is loaded on first use is not the call's
    before = resident("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = run.call(matrix)
    peak = resident("VmHWM")
    values = run.values(result).float()
    error = float((values.double() - matrix.double()).square().mean() / matrix.double().square().mean())
    extra = None if peak is None or before is None else peak - before - held(result)
    return {"extra_bytes": extra, "relative_mse": error}


def held(result: Any) -> int:
    """Bytes of the tensors and arrays in a result, whatever it is made of."""
    inner = getattr(result, "__tensor_flatten__", None)
    if inner is not None:
        return sum(held(getattr(result, name)) for name in inner()[0])
    if hasattr(result, "nbytes") and hasattr(result, "dtype"):
        return int(result.nbytes)
    if isinstance(result, dict | tuple | list):
        return sum(held(part) for part in (result.values() if isinstance(result, dict) else result))
    return sum(held(part) for part in vars(result).values()) if hasattr(result, "__dict__") else 0


def resident(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, name: str, matrices: int, extra_environment: dict[str, str] | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        environment |= extra_environment or {}
        self.name, self.matrices = name, matrices
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.numerics", "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.hello = self.ask(matrices)

    def ask(self, request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(request, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        return json.loads(reply) if reply else {"missing": "its process ended"}

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class Result:
    name: str
    version: str
    speeds: tuple[float, ...]  # GB/s of input, one a block
    relative_mse: float
    extra_bytes: int | None

    @property
    def speed(self) -> float:
        return median(self.speeds)


def probe(name: str) -> dict[str, Any]:
    """Error and extra memory, in a process whose allocator gives back at once what is freed."""
    worker = Worker(name, 1, {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"})
    reply = worker.ask("memory")
    worker.close()
    return reply


def measure(work: Work, blocks: int) -> tuple[list[Result], list[str]]:
    workers, notes = [], []
    for name in work.contestants:
        worker = Worker(name, 1 if name in SLOW else work.matrices)
        if "missing" in worker.hello:
            notes.append(f"{name}: not here ({worker.hello['missing']})")
            worker.close()
        else:
            workers.append(worker)
    about = {worker.name: probe(worker.name) for worker in workers}
    for worker in workers:
        worker.ask("time")  # warms up
    speeds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for block in range(blocks):
        for worker in workers:
            if worker.name in SLOW and block >= 2:
                continue
            seconds = worker.ask("time")["seconds"]
            speeds[worker.name].append(worker.matrices * INPUT_BYTES / seconds / 1e9)
    for worker in workers:
        worker.close()
    return [
        Result(
            w.name,
            w.hello["version"],
            tuple(speeds[w.name]),
            about[w.name]["relative_mse"],
            about[w.name]["extra_bytes"],
        )
        for w in workers
    ], notes


def show(work: Work, results: list[Result], notes: list[str]) -> bool:
    """Print one table; whether everything that must be reached was."""
    print(f"\n{work.name}, {work.matrices} of {SIDE} x {SIDE} float32, {THREADS} threads")
    print(f"  {'':31}{'GB/s':>8}{'lowest':>9}{'highest':>9}{'relative MSE':>15}{'extra memory':>15}")
    for r in results:
        share = "" if r.extra_bytes is None else f"{r.extra_bytes / INPUT_BYTES:.2f} x input"
        label = f"fewbits ({r.name})" if r.name in OURS else f"{r.name} {r.version}"
        speeds = f"{r.speed:8.3f}{min(r.speeds):9.3f}{max(r.speeds):9.3f}"
        print(f"  {label:31}{speeds}{r.relative_mse:15.6f}{share:>15}")
    for note in notes:
        print(f"  {note}")
    ours = next(r for r in results if r.name in OURS)
    checks = []
    rival = next((r for r in results if r.name == work.rival), None)
    if rival is None and work.rival is not None:
        checks.append((f"{work.rival} is not here to be compared with", False))
    if rival is not None:
        ratio = ours.speed / rival.speed
        checks.append((f"{ratio:.1f}x {rival.name}, must reach {work.ratio:g}x", ratio >= work.ratio))
        if work.rival in SLOW:
            mse = f"relative MSE {ours.relative_mse:.6f}, must not be above {rival.relative_mse:.6f}"
            checks.append((mse, ours.relative_mse <= rival.relative_mse))
    if ours.extra_bytes is not None and work.memory_share is not None:
        share = ours.extra_bytes / INPUT_BYTES
        text = f"extra memory {share:.2f} x input, must be at most {work.memory_share:g}"
        checks.append((text, share <= work.memory_share))
    for text, good in checks:
        print(f"  {'reached' if good else 'MISSED'}: {text}")
    return all(good for _, good in checks)


def import_is_light() -> bool:
    code = "import sys, fewbits; sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        light = subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
        seconds.append(time.perf_counter() - start)
    print(f"\nimport fewbits: {min(seconds):.2f} s; {'without' if light else 'MISSED: it imports'} torch")
    return light


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", nargs="*", type=int, help="1 to 4; all of them by default")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker)
        return 0
    chosen = [WORKS[number - 1] for number in arguments.work] or WORKS
    good = [show(work, *measure(work, arguments.blocks)) for work in chosen]
    return 0 if all([*good, import_is_light()]) else 1


if __name__ == "__main__":
    sys.exit(main())
