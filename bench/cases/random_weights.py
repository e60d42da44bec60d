"""Image classifiers as transformers configures them, with random weights, batch 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import NNCF, fewbits, floats, nncf, ort_static
from bench.table import CaseResult, Column, Scores, run

STATIC = "fewbits w8a8"
# Random weights give classes nearly equal logits: the first one changes at the smallest error, and to hold a limit on
# that layers would be raised which the files of peers have in 8 bits. What is lost is in the table.
ANY_DROP = "100%"
COLUMNS = (Column("sqnr_db", "SQNR dB", "{:.1f}"), Column("cosine_min", "min cosine", "{:.4f}"))


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Logits against float32's."""
    return {
        "sqnr_db": quality.sqnr_db(reference, outputs),
        "cosine_min": quality.cosine_min(reference, outputs),
    }


def case(name: str, title: str, source: Callable[[], Path], side: int) -> Case:
    """A case on images of `side` x `side` pixels."""

    def measure(tell: Tell) -> CaseResult:
        samples = data.large_images("test", 128, side)
        calibration = partial(data.large_images, "train", 256, side)
        rows = run(
            [
                *floats(source, samples),
                *nncf(source, calibration, samples),
                ort_static(source, calibration, samples, "MinMax"),
                fewbits(STATIC, "w8a8", source, calibration, samples, max_drop=ANY_DROP),
            ],
            samples,
            score,
            tell,
        )
        checks = (
            rows.time_check("latency over NNCF's", STATIC, NNCF, 1.05),
            rows.score_check(
                "output SQNR in dB, NNCF's",
                STATIC,
                "sqnr_db",
                lambda: rows.best("sqnr_db", *NNCF),
                "at least",
            ),
        )
        setting = (
            f"{side} x {side}, batch 1, random weights. Calibrated on 256 CIFAR-10 training images enlarged to {side}, "
            "outputs compared on 128 test images."
        )
        return CaseResult(name, title, setting, COLUMNS, rows.rows, checks)

    return Case(name, title, measure)


RESNET18 = case("resnet18", "ResNet-18 architecture", models.resnet18, models.RESNET18_SIDE)
MOBILENETV2 = case("mobilenetv2", "MobileNetV2 architecture", models.mobilenetv2, models.MOBILENETV2_SIDE)
MOBILEVIT = case("mobilevit", "MobileViT-small architecture", models.mobilevit, models.MOBILEVIT_SIDE)
