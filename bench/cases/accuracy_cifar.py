"""ResNet-20 and ResNet-56 in few bits: top-1 on the 10,000 CIFAR-10 test images, and the time it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import data, quality
from bench.case import Case, Tell
from bench.entrants import ORT, inference_peak, nncf, ort_static
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import CaseResult, Check, Column, Row, Rows, Runnable, file_runnable
from fewbits.engines.engine import EngineSettings
from fewbits.errors import FewbitsError

CALIBRATION = 1024
CHOSEN_ON = (
    256  # of them; all files of a recipe have the same codes, so having learned from these favours none
)
COLUMNS = (
    Column("mb", "MB", "{:.2f}"),
    Column("top1", "top-1 %", "{:.2f}"),
    Column("drop", "drop", "{:.2f}"),
    Column("differ", "predictions that differ", "{:.0f}"),
    Column("seconds", "s to make", "{:.0f}"),
    Column("peak_mb", "peak MB", "{:.0f}"),
)
IN_TORCH = {
    "rounded to nearest, int4": "nearest4",
    "rounded to nearest, int3": "nearest3",
    "rounded to nearest, int2": "nearest2",
    "optimum-quanto int4": "quanto4",
    "optimum-quanto int2": "quanto2",
}
"""Peers that compress weights alone, in PyTorch, by what `bench.torch_cifar` calls them."""


@dataclass(frozen=True)
class Wanted:
    """A recipe, and what it may cost: points of top-1, and predictions that differ from float32's."""

    recipe: str
    drop: float
    differ: int | None = None


@dataclass(frozen=True)
class Net:
    """One of the two nets, and what is wanted of it."""

    depth: int
    wanted: tuple[Wanted, ...]
    most_seconds: float

    @property
    def path(self) -> Path:
        """Its ONNX file."""
        from bench import models

        return models.resnet20() if self.depth == 20 else models.resnet56()


def case(net: Net) -> Case:
    """Every recipe and every peer on one of the nets."""
    name, title = f"resnet{net.depth}", f"ResNet-{net.depth} on CIFAR-10, in few bits"

    def measure(tell: Tell) -> CaseResult:
        samples, calibration = data.cifar_test(), lambda: data.cifar_calibration(CALIBRATION)
        with np.load(samples) as arrays:
            labels = arrays["labels"]
        tell("float32")
        reference = np.load(file_runnable("float32", net.path, ORT, samples).outputs)

        def scored(name: str, role: str, make: Callable[[], tuple[Path, Mapping[str, float]]]) -> Row:
            tell(name)
            try:
                path, more = make()
            except (MissingError, JobError, FewbitsError) as error:
                return Row(name, role, error=str(error))
            outputs = np.load(path)
            right, before = (quality.correct(one, labels) for one in (outputs, reference))
            top1, drop = 100 * right / len(labels), 100 * (before - right) / len(labels)
            differ = quality.different_predictions(reference, outputs)
            return Row(name, role, scores={"top1": top1, "drop": drop, "differ": differ, **more})

        def of_file(made: Runnable) -> tuple[Path, Mapping[str, float]]:
            return made.outputs, {"mb": made.size_bytes / 1e6}

        def original() -> tuple[Path, Mapping[str, float]]:
            outputs, more = of_file(file_runnable("float32", net.path, ORT, samples))
            return outputs, {**more, "peak_mb": inference_peak(net.path, calibration()) / 1e6}

        rows = [scored("float32", "float", original)]
        peers = (
            *nncf(lambda: net.path, calibration, samples),
            ort_static(lambda: net.path, calibration, samples, "MinMax"),
        )
        rows += [scored(one.name, "peer", lambda one=one: of_file(one.make())) for one in peers]
        rows += [
            scored(name, "peer", lambda variant=variant: _in_torch(net, variant, samples))
            for name, variant in IN_TORCH.items()
        ]
        rows += [
            scored(
                f"fewbits {one.recipe}", "fewbits", lambda one=one: _ours(net, one, calibration(), samples)
            )
            for one in net.wanted
        ]
        setting = (
            f"32 x 32. Calibrated on the first {CALIBRATION} training images, without labels; the first {CHOSEN_ON} "
            "of them choose among fewbits' files. Scored on the 10,000 test images. Weights per channel, activations "
            "per tensor; rows with activations have the first and the last layer in 8 bits, and shortcuts in float. "
            "fewbits at effort high; seconds are those of reading, observing, learning and writing, with two threads. "
            "Peak memory is that of the process; float32's is that of running it on the calibration images, one by one."
        )
        return CaseResult(name, title, setting, COLUMNS, tuple(rows), _checks(net, Rows(rows)))

    return Case(name, title, measure)


def _in_torch(net: Net, variant: str, samples: Path) -> tuple[Path, Mapping[str, float]]:
    out = cached(f"outputs/resnet{net.depth}-{variant}.npy")
    call("bench.torch_cifar:outputs", depth=net.depth, variant=variant, samples=str(samples), out=str(out))
    return out, {}


def _ours(net: Net, wanted: Wanted, calibration: Path, samples: Path) -> tuple[Path, Mapping[str, float]]:
    made = call(
        "bench.ours:learned",
        source=str(net.path),
        calibration=str(calibration),
        chosen_on=str(data.cifar_calibration(CHOSEN_ON)),
        recipe=wanted.recipe,
        out=str(cached(f"fewbits/resnet{net.depth}-{wanted.recipe}-high")),
    )
    settings = EngineSettings(**made.value["settings"])
    runnable = file_runnable(wanted.recipe, Path(made.value["path"]), settings, samples)
    more = {
        "mb": runnable.size_bytes / 1e6,
        "seconds": made.value["seconds"],
        "peak_mb": made.peak_bytes / 1e6,
    }
    return runnable.outputs, more


def _checks(net: Net, rows: Rows) -> tuple[Check, ...]:
    found = []
    for one in net.wanted:
        limits = {
            "drop in points": ("drop", one.drop),
            "predictions that differ": ("differ", one.differ),
            "seconds": ("seconds", net.most_seconds),
        }
        for what, (key, limit) in limits.items():
            if limit is not None:
                name, what = f"fewbits {one.recipe}", f"{one.recipe}: {what}"
                found.append(rows.score_check(what, name, key, lambda limit=limit: float(limit), "at most"))
        found.append(rows.peak_check(one.recipe, f"fewbits {one.recipe}", "float32"))
    return tuple(found)


RESNET20 = case(
    Net(
        20,
        (
            Wanted("w8a8", 0.10, 60),
            Wanted("w4a8", 0.25),
            Wanted("w4_codebook", 0.30),
            Wanted("w4a4", 0.8),
            Wanted("w3a8", 0.7),
            Wanted("w2a8", 2.8),
        ),
        360,
    )
)
RESNET56 = case(
    Net(
        56,
        (
            Wanted("w8a8", 0.10, 55),
            Wanted("w4a8", 0.25),
            Wanted("w4_codebook", 0.30),
            Wanted("w4a4", 0.8),
            Wanted("w3a8", 0.7),
            Wanted("w2a8", 2.8),
        ),
        1200,
    )
)
