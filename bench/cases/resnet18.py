"""The ResNet-18 architecture with random weights, 224 x 224, batch 1."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import NNCF, fewbits, floats, nncf, ort_static
from bench.table import CaseResult, Column, Scores, run

STATIC = "fewbits w8a8"
NEAR_TIES = (
    "10%"  # random weights give classes nearly equal logits: the first one changes at the smallest error
)
COLUMNS = (Column("sqnr_db", "SQNR dB", "{:.1f}"), Column("cosine_min", "min cosine", "{:.4f}"))


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Logits against float32's."""
    return {
        "sqnr_db": quality.sqnr_db(reference, outputs),
        "cosine_min": quality.cosine_min(reference, outputs),
    }


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.large_images("test", 128)
    calibration = partial(data.large_images, "train", 256)
    rows = run(
        [
            *floats(models.resnet18, samples),
            *nncf(models.resnet18, calibration, samples),
            ort_static(models.resnet18, calibration, samples, "MinMax"),
            fewbits(STATIC, "w8a8", models.resnet18, calibration, samples, max_drop=NEAR_TIES),
        ],
        samples,
        score,
        tell,
    )
    checks = (
        rows.time_check("latency over NNCF's", STATIC, NNCF, 1.05),
        rows.score_check(
            "output SQNR in dB, NNCF's", STATIC, "sqnr_db", lambda: rows.best("sqnr_db", *NNCF), "at least"
        ),
    )
    setting = (
        "224 x 224, batch 1, random weights. Calibrated on 256 CIFAR-10 training images enlarged to 224, "
        "outputs compared on 128 test images."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


CASE = Case("resnet18", "ResNet-18 architecture", measure)
