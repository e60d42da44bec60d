"""A sentence encoder: all-MiniLM-L6-v2, 128 tokens, batch 1."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import (
    FLOATS,
    NNCF,
    fewbits,
    floats,
    nncf,
    nncf_weights,
    ort_dynamic,
    ort_static,
    torch_minilm,
)
from bench.table import CaseResult, Column, Scores, run

MAX_BYTES = 24e6
WEIGHTS, STATIC = "fewbits w8", "fewbits w8a8"
COLUMNS = (
    Column("agreement", "agreement", "{:.4f}"),
    Column("cosine_min", "min cosine", "{:.4f}"),
    Column("sqnr_db", "SQNR dB", "{:.1f}"),
)


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Embeddings against float32's."""
    return {
        "agreement": quality.neighbour_agreement(reference, outputs),
        "cosine_min": quality.cosine_min(reference, outputs),
        "sqnr_db": quality.sqnr_db(reference, outputs),
    }


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.minilm_paragraphs()
    calibration = partial(data.minilm_calibration, 256, 128)
    in_torch = partial(torch_minilm, calibration=calibration, samples=samples)
    rows = run(
        [
            *floats(models.minilm, samples),
            in_torch("PyTorch fp32", "float", "torch"),
            *nncf(models.minilm, calibration, samples, transformer=True),
            nncf_weights(models.minilm, samples),
            ort_static(models.minilm, calibration, samples, "MinMax", ["MatMul", "Gemm"]),
            ort_dynamic(models.minilm, samples),
            in_torch("optimum-quanto int8 weights", "quanto_weights", "optimum-quanto"),
            in_torch("optimum-quanto int8", "quanto_static", "optimum-quanto"),
            in_torch("torchao int8 weights", "torchao_weights", "torchao"),
            in_torch("torchao int8 dynamic", "torchao_dynamic", "torchao"),
            fewbits(WEIGHTS, "w8", models.minilm, calibration, samples),
            fewbits(STATIC, "w8a8", models.minilm, calibration, samples),
        ],
        samples,
        score,
        tell,
    )
    checks = (
        rows.size_check("w8: file, MB", WEIGHTS, MAX_BYTES),
        rows.time_check("w8: latency over OpenVINO bf16's of the original", WEIGHTS, FLOATS[2:], 1.05),
        rows.score_check("w8: minimum cosine", WEIGHTS, "cosine_min", lambda: 0.998, "at least"),
        rows.time_check("w8a8: latency over NNCF's", STATIC, NNCF, 1.05),
        rows.score_check(
            "w8a8: agreement, NNCF's plus 0.01",
            STATIC,
            "agreement",
            lambda: rows.best("agreement", *NNCF) + 0.01,
            "at least",
        ),
    )
    setting = (
        "128 tokens, batch 1. Calibrated on 256 paragraphs of WikiText-2 valid, scored on 2,000 others. "
        "Agreement: is each paragraph's nearest neighbour the same as in float32."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


CASE = Case("minilm", "MiniLM sentence encoder", measure)
