"""ResNet-20 trained further with rounding, and in 16 bits: top-1 on the 10,000 CIFAR-10 test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import ORT
from bench.keep import kept, version
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import THREADS, CaseResult, Column, Row, Rows, file_runnable
from fewbits.errors import FewbitsError
from fewbits.measure.latency import CallableContestant, measure_latency

CALIBRATION = 1024
MOST_SECONDS = 1200
ALIKE = 0.1  # percent of predictions in which a file may differ from the trained module
BEFORE, TUNED = "float32", "float32, trained further"
COLUMNS = (
    Column("mb", "MB", "{:.3f}"),
    Column("top1", "top-1 %", "{:.2f}"),
    Column("drop", "drop", "{:.2f}"),
    Column("unlike", "file unlike module, %", "{:.2f}"),
    Column("start_seconds", "s before training", "{:.0f}"),
    Column("seconds", "s in all", "{:.0f}"),
    Column("cpu_seconds", "of the CPU, s", "{:.0f}"),
)
EPOCHS = 2
RATE = 1e-4
"""Adam's at the beginning; chosen on training images kept apart, see docs/training-benchmarks.md."""


@dataclass(frozen=True)
class Wanted:
    """A recipe, what it may cost in points of top-1, what is spent on it before training, and the rate of that."""

    name: str
    recipe: str
    drop: float
    effort: str = "fast"
    lr: float = RATE


def case(wanted: Wanted) -> Case:
    """One recipe, trained."""
    title = f"ResNet-20 on CIFAR-10, {wanted.name}"
    row = f"fewbits {wanted.name}"

    def measure(tell: Tell) -> CaseResult:
        tell("float32")
        floats = _floats()
        tell(f"{wanted.name}: quantization-aware training")
        rows = [*floats, _row(row, "fewbits", lambda: _rounded(wanted), lambda: _best(floats))]
        limits = {"drop in points": ("drop", wanted.drop), "seconds": ("seconds", float(MOST_SECONDS))}
        if wanted.recipe == "w8a8":
            limits["predictions in which the file differs from the trained module, %"] = ("unlike", ALIKE)
        checks = (
            Rows(rows).score_check(f"{wanted.name}: {what}", row, key, lambda limit=limit: limit, "at most")
            for what, (key, limit) in limits.items()
        )
        setting = (
            f"Calibrated on the first {CALIBRATION} training images, effort {wanted.effort}; {_spent(wanted.lr)}, "
            "taught by the float net. Drops are from the better of the two float nets. The file runs in ONNX Runtime."
        )
        return CaseResult(wanted.name, title, setting, COLUMNS, tuple(rows), tuple(checks))

    return Case(wanted.name, title, measure)


def _sixteen_bits(tell: Tell) -> CaseResult:
    names = {"f32": "training in float32", "bf16": "training in bf16"}
    rows = []
    tell("steps side by side")
    contestants = [
        CallableContestant(name, "bench.cifar_training:stepper", {"precision": precision, "threads": THREADS})
        for precision, name in names.items()
    ]
    latencies = dict(zip(names, measure_latency(contestants, {}), strict=True))
    for precision, name in names.items():
        tell(name)
        try:
            outputs, told = _in_float(precision)
        except (MissingError, JobError) as error:
            rows.append(Row(name, "float", error=str(error)))
            continue
        scores = {"top1": _top1(outputs), "grown_mb": told["grown_mb"]}
        role = "float" if precision == "f32" else "fewbits"
        rows.append(
            Row(name, role, latency=latencies[precision], scores=scores, error=latencies[precision].error)
        )
    table, (before, after) = Rows(rows), names.values()
    checks = (
        table.score_check(
            "top-1 of bf16", after, "top1", lambda: table.named(before)[0].scores["top1"] - 0.3, "at least"
        ),
    )
    columns = (
        Column("top1", "top-1 %", "{:.2f}"),
        Column("grown_mb", "memory that training took, MB", "{:.0f}"),
    )
    setting = (
        f"Timed: a step of training on 128 images, {THREADS} threads. Trained: {_spent(RATE)}, against the labels. "
        "Memory: by how much the process grew at most."
    )
    return CaseResult("bf16", "ResNet-20 on CIFAR-10, training in bf16", setting, columns, table.rows, checks)


def _spent(lr: float) -> str:
    return (
        f"{EPOCHS} epochs over the 10,000 training images, mirrored and shifted at random, batches of 128, "
        f"Adam from {lr}"
    )


def _floats() -> list[Row]:
    """The float net as it was and trained further, against the labels, in the same loop for as many steps."""
    before = _row(
        BEFORE,
        "float",
        lambda: (file_runnable(BEFORE, models.resnet20(), ORT, data.cifar_test()).outputs, {}),
    )
    return [before, _row(TUNED, "float", lambda: _in_float("f32"))]


def _best(floats: list[Row]) -> float:
    """The better of the two float nets; without one of them there is nothing to be judged by."""
    rows = Rows(floats)
    return max(rows.best("top1", one) for one in (BEFORE, TUNED))


def _row(
    name: str,
    role: Any,
    make: Callable[[], tuple[Path, Mapping[str, float]]],
    best: Callable[[], float] | None = None,
) -> Row:
    try:
        to_reach = None if best is None else best()
        path, more = make()
    except (MissingError, JobError, FewbitsError) as error:
        return Row(name, role, error=str(error))
    top1 = _top1(path)
    scores = {"top1": top1, **more} if to_reach is None else {"top1": top1, "drop": to_reach - top1, **more}
    return Row(name, role, scores=scores)


def _top1(path: Path) -> float:
    with np.load(data.cifar_test()) as arrays:
        labels = arrays["labels"]
    return 100 * quality.correct(np.load(path), labels) / len(labels)


def _in_float(precision: str) -> tuple[Path, Mapping[str, float]]:
    """Once for all rows of a version."""
    samples = data.cifar_test()
    settings = {"epochs": EPOCHS, "lr": RATE, "precision": precision}
    outputs = kept("outputs", "resnet20-trained", ".npy", (samples,), version=version("torch"), **settings)
    told = outputs.with_suffix(".json")
    if not told.is_file():
        done = call("bench.cifar_training:in_float", samples=str(samples), out=str(outputs), **settings)
        told.write_text(json.dumps(done.value))
    return outputs, json.loads(told.read_text())


def _rounded(wanted: Wanted) -> tuple[Path, Mapping[str, float]]:
    path, out = (cached(f"fewbits/resnet20-{wanted.name}-trained{suffix}") for suffix in (".onnx", ".npy"))
    samples = data.cifar_test()
    told = call(
        "bench.cifar_training:with_rounding",
        recipe=wanted.recipe,
        effort=wanted.effort,
        calibration=str(data.cifar_calibration(CALIBRATION)),
        samples=str(samples),
        path=str(path),
        out=str(out),
        epochs=EPOCHS,
        lr=wanted.lr,
    ).value
    made = file_runnable(wanted.name, path, ORT, samples)
    trained = np.load(out)
    unlike = 100 * quality.different_predictions(trained, np.load(made.outputs)) / len(trained)
    return made.outputs, {"mb": made.size_bytes / 1e6, "unlike": unlike, **told}


ROUNDED = tuple(
    case(one)
    for one in (
        Wanted("w8a8", "w8a8", 0.2),
        Wanted("w4a4", "w4a4", 1.0),
        Wanted("w2a4", "w2a4", 4.0, "normal", 3e-4),
        Wanted("ternary", str(Path(__file__).parents[1] / "ternary.toml"), 5.0, "normal", 3e-4),
        Wanted("w4_codebook", "w4_codebook", 0.3),
    )
)
SIXTEEN_BITS = Case("bf16", "ResNet-20 on CIFAR-10, training in bf16", _sixteen_bits)
