"""A text-to-text transformer that generates: the architecture of flan-t5-small, 32 tokens in, 24 out, greedy."""

from __future__ import annotations

import numpy as np

from bench import quality
from bench.case import Case, Tell
from bench.in_torch import (
    BF16,
    FP32,
    QUANTO,
    QUANTO_4,
    TORCH_DYNAMIC,
    TORCHAO,
    TORCHAO_DYNAMIC,
    fewbits,
    peer,
)
from bench.table import CaseResult, Column, Scores, run

INT8, INT8_WEIGHTS, INT4 = "fewbits w8a8_dynamic", "fewbits w8", "fewbits w4_g128"
PEERS = (FP32, BF16, QUANTO, QUANTO_4, TORCHAO, TORCHAO_DYNAMIC, TORCH_DYNAMIC)
INT8_BYTES, INT4_BYTES = 80e6, 55e6
FASTER = 1.5
SQNR_DB = 25
COLUMNS = (Column("sqnr_db", "logits' SQNR dB", "{:.1f}"),)


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Logits against float32's."""
    return {"sqnr_db": quality.sqnr_db(reference, outputs)}


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    ours = [fewbits(name.removeprefix("fewbits "), "t5") for name in (INT8, INT8_WEIGHTS, INT4)]
    rows = run([*(peer(name, "t5") for name in PEERS), *ours], None, score, tell)
    checks = []
    for name in (INT8, INT8_WEIGHTS):
        checks += [
            rows.time_check(f"{name}: latency over fp32's", name, (FP32,), 1 / FASTER),
            rows.size_check(f"{name}: file, MB", name, INT8_BYTES),
            rows.score_check(f"{name}: SQNR, dB", name, "sqnr_db", lambda: SQNR_DB, "at least"),
        ]
    checks += [
        rows.time_check(f"{INT4}: latency over fp32's", INT4, (FP32,), 1.0),
        rows.size_check(f"{INT4}: file, MB", INT4, INT4_BYTES),
    ]
    setting = (
        "Random weights. Timed: `generate()` of exactly 24 tokens after 32, batch 1. SQNR is of "
        "the logits of 24 given tokens each after 4 prompts."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, tuple(checks))


CASE = Case("t5", "flan-t5-small architecture", measure)
