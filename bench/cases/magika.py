"""Magika, Google's file-type classifier, on 152 labelled files, batch 1."""

from __future__ import annotations

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import FLOATS, fewbits, floats, nncf, nncf_weights, ort_dynamic, refusal
from bench.paths import MissingError
from bench.process import JobError
from bench.table import CaseResult, Check, Column, Scores, run

WEIGHTS = "fewbits w8"
ONE_SAMPLE = "2%"  # of the held back calibration samples, fewer than 100
COLUMNS = (
    Column("right", "right of 152", "{:.0f}"),
    Column("lost", "lost", "{:.0f}"),
    Column("sqnr_db", "SQNR dB", "{:.1f}"),
)


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.magika_labelled()
    with np.load(samples) as arrays:
        labels = arrays["labels"]

    def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
        return {
            "right": quality.correct(outputs, labels),
            "lost": quality.lost(reference, outputs, labels),
            "sqnr_db": quality.sqnr_db(reference, outputs),
        }

    rows = run(
        [
            *floats(models.magika, samples),
            *nncf(models.magika, data.magika_calibration, samples),
            nncf_weights(models.magika, samples),
            ort_dynamic(models.magika, samples),
            fewbits(WEIGHTS, "w8", models.magika, data.magika_calibration, samples, max_drop=ONE_SAMPLE),
        ],
        samples,
        score,
        tell,
    )
    intact = [row.name for row in rows.rows if row.role == "float" and row.scores.get("lost") == 0]
    checks = (
        rows.size_check("file, MB (27 % of the original)", WEIGHTS, 0.27 * models.magika().stat().st_size),
        rows.score_check("files lost", WEIGHTS, "lost", lambda: 0.0, "at most"),
        rows.time_check("latency over float best's", WEIGHTS, FLOATS, 1.03),
        rows.time_check("latency over that of the best float that loses none", WEIGHTS, intact, 1.03),
        _refusal_check(tell),
    )
    setting = (
        "2,048 bytes of a file, batch 1. Calibrated on this project's own files, as they are and packed, "
        "scored on the 152 labelled files."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


def _refusal_check(tell: Tell) -> Check:
    what = "reasons the report of recipe auto gives for refusing bf16"
    tell("compressing with recipe auto")
    try:
        reasons = refusal(models.magika, data.magika_calibration, "bf16")
    except (MissingError, JobError) as error:
        return Check(what, None, 1.0, "at least", why=str(error))
    return Check(what, float(len(reasons)), 1.0, "at least", why="; ".join(reasons))


CASE = Case("magika", "Magika file-type classifier", measure)
