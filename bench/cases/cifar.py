"""ResNet-20 and ResNet-56 on the 10,000 CIFAR-10 test images, batch 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import NNCF, fewbits, floats, nncf, ort_static, ort_static_name
from bench.table import CaseResult, Column, Scores, run

STATIC = "fewbits w8a8"
METHODS = ("MinMax", "Entropy", "Percentile")
COLUMNS = (
    Column("top1", "top-1 %", "{:.2f}"),
    Column("differ", "predictions that differ", "{:.0f}"),
    Column("sqnr_db", "SQNR dB", "{:.1f}"),
)


def case(name: str, title: str, source: Callable[[], Path], most_different: int) -> Case:
    """A case on CIFAR-10; `most_different` predictions may differ from float32's."""

    def measure(tell: Tell) -> CaseResult:
        samples = data.cifar_test()
        with np.load(samples) as arrays:
            labels = arrays["labels"]

        def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
            top1 = 100 * quality.correct(outputs, labels) / len(labels)
            return {
                "top1": top1,
                "change": abs(top1 - 100 * quality.correct(reference, labels) / len(labels)),
                "differ": quality.different_predictions(reference, outputs),
                "sqnr_db": quality.sqnr_db(reference, outputs),
            }

        rows = run(
            [
                *floats(source, samples),
                *nncf(source, data.cifar_calibration, samples),
                *(ort_static(source, data.cifar_calibration, samples, method) for method in METHODS),
                fewbits(STATIC, "w8a8", source, data.cifar_calibration, samples),
            ],
            samples,
            score,
            tell,
        )
        peers = (*NNCF, *map(ort_static_name, METHODS))
        checks = (
            rows.score_check(
                "predictions that differ from float32's",
                STATIC,
                "differ",
                lambda: float(most_different),
                "at most",
            ),
            rows.score_check("top-1 points from float32's", STATIC, "change", lambda: 0.15, "at most"),
            rows.time_check("latency over the fastest int8 peer's", STATIC, peers, 1.05),
        )
        setting = "32 x 32, batch 1. Calibrated on 512 training images, scored on the 10,000 test images."
        return CaseResult(name, title, setting, COLUMNS, rows.rows, checks)

    return Case(name, title, measure)


RESNET20 = case("resnet20", "ResNet-20 on CIFAR-10", models.resnet20, 70)
RESNET56 = case("resnet56", "ResNet-56 on CIFAR-10", models.resnet56, 65)
