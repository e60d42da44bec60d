"""An image classifier of convolutions and attention in 16 bits: the architecture of MobileViT-small."""

from __future__ import annotations

import numpy as np

from bench import quality
from bench.case import Case, Tell
from bench.in_torch import BF16, FP32, fewbits, peer
from bench.table import CaseResult, Column, Scores, run

HALF = "fewbits bf16"
COLUMNS = (
    Column("apart", "largest difference, % of the range", "{:.3f}"),
    Column("sqnr_db", "logits' SQNR dB", "{:.1f}"),
)


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Logits against float32's; the range is from the smallest to the largest of all images."""
    apart = np.abs(reference - outputs).max() / (reference.max() - reference.min())
    return {"apart": 100 * float(apart), "sqnr_db": quality.sqnr_db(reference, outputs)}


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    entrants = [peer(FP32, "mobilevit"), peer(BF16, "mobilevit"), fewbits("bf16", "mobilevit")]
    rows = run(entrants, None, score, tell)
    (float_row,) = rows.named(FP32)
    checks = (
        rows.size_check("file, MB (half of fp32's)", HALF, float_row.size_bytes / 2),
        rows.score_check("largest difference, % of the range", HALF, "apart", lambda: 1.0, "at most"),
        rows.time_check("latency over fp32's", HALF, (FP32,), 1.1),
    )
    setting = "256 x 256, batch 1, random weights; outputs compared on 8 random images."
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


CASE = Case("mobilevit", "MobileViT-small architecture in bf16", measure)
