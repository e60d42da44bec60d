"""The sentence encoder of `minilm`, staying in PyTorch: int8 with activations rounded as they come."""

from __future__ import annotations

from functools import partial

from bench import data
from bench.case import Case, Tell
from bench.cases.minilm import COLUMNS, score
from bench.entrants import torch_minilm
from bench.in_torch import FP32, QUANTO, TORCHAO, TORCHAO_DYNAMIC, fewbits
from bench.table import CaseResult, run

DYNAMIC = "fewbits w8a8_dynamic"
TIME, AGREEMENT = 0.75, 0.94


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.minilm_paragraphs()
    calibration = partial(data.minilm_calibration, 256, 128)
    in_torch = partial(torch_minilm, calibration=calibration, samples=samples)
    entrants = [
        in_torch(FP32, "float", "torch"),
        in_torch(QUANTO, "quanto_weights", "optimum-quanto"),
        in_torch(TORCHAO, "torchao_weights", "torchao"),
        in_torch(TORCHAO_DYNAMIC, "torchao_dynamic", "torchao"),
        fewbits("w8a8_dynamic", "minilm"),
    ]
    rows = run(entrants, None, score, tell)
    checks = (
        rows.time_check("latency over fp32's", DYNAMIC, (FP32,), TIME),
        rows.score_check("agreement", DYNAMIC, "agreement", lambda: AGREEMENT, "at least"),
    )
    setting = (
        "128 tokens, batch 1. Scored on 2,000 paragraphs of WikiText-2; nothing is calibrated. "
        "Agreement: is each paragraph's nearest neighbour the same as in float32."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


CASE = Case("minilm-torch", "MiniLM in PyTorch, w8a8_dynamic", measure)
