"""ResNet-20 with half the multiplications, in float and in int8, beside int8 alone: CIFAR-10, batch 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import ORT, fewbits
from bench.keep import version
from bench.paths import cached
from bench.process import call
from bench.table import CaseResult, Check, Column, Entrant, Runnable, Scores, file_runnable, run

EPOCHS = 150  # as many as fit in the time with a third of it to spare, on two free cores
MOST_SECONDS = 1500
BEFORE, TUNED = "float32", "float32, trained further"
PRUNED, BOTH, INT8 = "fewbits pruned", "fewbits pruned, w8a8", "fewbits w8a8"
COLUMNS = (
    Column("top1", "top-1 %", "{:.2f}"),
    Column("macs", "MACs", "{:.3f}"),
    Column("seconds", "s in all", "{:.0f}"),
)


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.cifar_test()
    with np.load(samples) as arrays:
        labels = arrays["labels"]
    told: dict[str, Mapping[str, float]] = {}

    def entrant(name: str, role: Any, make: Callable[[], tuple[Path, Mapping[str, float]]]) -> Entrant:
        def runnable() -> Runnable:
            path, told[name] = make()
            return file_runnable(name, path, ORT, samples)

        return Entrant(name, role, runnable)

    def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
        return {"top1": 100 * quality.correct(outputs, labels) / len(labels)}

    rows = run(
        [
            entrant(BEFORE, "float", lambda: (models.resnet20(), {"macs": 1.0})),
            entrant(TUNED, "float", _tuned),
            fewbits(INT8, "w8a8", models.resnet20, data.cifar_calibration, samples),
            entrant(PRUNED, "fewbits", lambda: _pruned()[0]),
            entrant(BOTH, "fewbits", lambda: _pruned()[1]),
        ],
        samples,
        score,
        tell,
    )
    for row in rows.rows:
        if row.error is None:
            row.scores.update(told.get(row.name, {}))  # type: ignore[attr-defined]

    def best() -> float:
        # Without one of the two there is nothing to be judged by.
        return max(rows.best("top1", one) for one in (BEFORE, TUNED))

    (original,) = rows.named(BEFORE)
    checks: tuple[Check, ...] = (
        rows.score_check("multiplications left", PRUNED, "macs", lambda: 0.5, "at most"),
        rows.score_check("top-1 %", PRUNED, "top1", lambda: best() - 2.0, "at least"),
        rows.time_check("latency over float32's", PRUNED, (BEFORE,), 0.65),
        rows.score_check(
            "seconds of pruning and training", PRUNED, "seconds", lambda: float(MOST_SECONDS), "at most"
        ),
        rows.size_check("MB with int8 on top", BOTH, original.size_bytes / 7),
        rows.time_check("latency with int8 on top over int8's alone", BOTH, (INT8,), 1.0),
    )
    setting = (
        f"Pruned in two steps, {EPOCHS} epochs in all over the 10,000 training images, mirrored, shifted and mixed by "
        "twos at random, taught by the float net; then 2 with rounding. Float trained further: as many, against the "
        "labels. Drops are from the better of the two float nets. ONNX Runtime, 32 x 32, batch 1, scored on the 10,000 "
        "test images."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


@cache
def _tuned() -> tuple[Path, Mapping[str, float]]:
    path = cached(f"fewbits/resnet20-tuned-mixed-{EPOCHS}-{version('torch')}.onnx")
    if path.is_file():
        return path, {}
    return path, call("bench.cifar_pruning:tuned", epochs=EPOCHS, path=str(path)).value


@cache
def _pruned() -> tuple[tuple[Path, Mapping[str, float]], tuple[Path, Mapping[str, float]]]:
    path, rounded = (cached(f"fewbits/resnet20-pruned{suffix}.onnx") for suffix in ("", "-w8a8"))
    told = call(
        "bench.cifar_pruning:pruned",
        epochs=EPOCHS,
        calibration=str(data.cifar_calibration(1024)),
        path=str(path),
        rounded=str(rounded),
    ).value
    macs = {"macs": told["macs"]}
    return (path, {**macs, "seconds": told["seconds"]}), (
        rounded,
        {**macs, "seconds": told["rounded_seconds"]},
    )


CASE = Case("pruned", "ResNet-20 on CIFAR-10, half the multiplications", measure)
