"""LSTM and GRU, two layers of 512, a sequence of 100: int8 with activations rounded as they come."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench import quality
from bench.case import Case, Tell
from bench.in_torch import FP32, TORCH_DYNAMIC, fewbits, peer
from bench.table import CaseResult, Column, Scores, run

DYNAMIC = "fewbits w8a8_dynamic"
SHARE, FASTER, SQNR_DB = 0.27, 1.6, 30
COLUMNS = (Column("sqnr_db", "outputs' SQNR dB", "{:.1f}"),)


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Outputs of all steps against float32's."""
    return {"sqnr_db": quality.sqnr_db(reference, outputs)}


def measure(subject: str, tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    entrants = [peer(FP32, subject), peer(TORCH_DYNAMIC, subject), fewbits("w8a8_dynamic", subject)]
    rows = run(entrants, None, score, tell)
    (float_row,) = rows.named(FP32)
    checks = (
        rows.size_check(f"file, MB ({100 * SHARE:.0f} % of fp32's)", DYNAMIC, SHARE * float_row.size_bytes),
        rows.time_check("latency over fp32's", DYNAMIC, (FP32,), 1 / FASTER),
        rows.score_check("SQNR, dB", DYNAMIC, "sqnr_db", lambda: SQNR_DB, "at least"),
    )
    setting = (
        "Sequence of 100, batch 1, 512 features, random weights. optimum-quanto and torchao leave recurrent "
        "layers in float; torch.ao is deprecated."
    )
    case = CASES[subject]
    return CaseResult(case.name, case.title, setting, COLUMNS, rows.rows, checks)


CASES = {name: Case(name, f"{name.upper()}, 2 x 512", partial(measure, name)) for name in ("lstm", "gru")}
