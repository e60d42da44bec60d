"""Silero VAD, a detector of speech with a state, step by step over one minute of speech."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench import data, models, silero_jobs
from bench.case import Case, Tell
from bench.entrants import FLOATS, NNCF_OPENVINO, ORT, fewbits, floats, made, ort_dynamic, ort_static_name
from bench.table import CaseResult, Column, Entrant, Runnable, Scores, file_runnable, run

WEIGHTS, DYNAMIC, STATIC = "fewbits w8", "fewbits w8a8_dynamic", "fewbits w8a8"
JOB = "bench.silero_jobs:outputs"
STATE = {"stateN": "state"}
SHARE, MEAN_ABS, DECISIONS, SLOWER = 0.31, 0.003, 5.0, 1.03
SPEECH = 0.5  # the probability from which on a step is speech
COLUMNS = (
    Column("mean_abs", "mean difference", "{:.5f}"),
    Column("largest", "largest", "{:.3f}"),
    Column("decisions", "decisions changed", "{:.0f}"),
)


def score(reference: np.ndarray, outputs: np.ndarray) -> Scores:
    """Probabilities of speech against float32's, over all steps."""
    difference = np.abs(outputs.astype(np.float64) - reference)
    return {
        "mean_abs": float(difference.mean()),
        "largest": float(difference.max()),
        "decisions": float(((outputs > SPEECH) != (reference > SPEECH)).sum()),
    }


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.speech_recording()
    ours = partial(
        fewbits,
        source=models.silero,
        calibration=data.speech_calibration,
        samples=samples,
        max_drop="5%",
        state=STATE,
        job=JOB,
    )
    rows = run(
        [
            *floats(models.silero, samples, JOB),
            Entrant(NNCF_OPENVINO, "peer", _nncf),
            ort_dynamic(models.silero, samples, JOB),
            Entrant(ort_static_name("MinMax"), "peer", _ort_static),
            ours(WEIGHTS, "w8"),
            ours(DYNAMIC, "w8a8_dynamic"),
            ours(STATIC, "w8a8"),
        ],
        samples,
        score,
        tell,
        silero_jobs.one_step(str(samples)),
    )
    checks = (
        rows.size_check(
            f"w8: file, MB ({SHARE:.0%} of the original)", WEIGHTS, SHARE * models.silero().stat().st_size
        ),
        rows.score_check(
            "w8: mean difference of the probability", WEIGHTS, "mean_abs", lambda: MEAN_ABS, "at most"
        ),
        rows.score_check(
            "w8: decisions at 0.5 that change", WEIGHTS, "decisions", lambda: DECISIONS, "at most"
        ),
        rows.time_check("w8: latency over float's in ONNX Runtime", WEIGHTS, FLOATS[:1], SLOWER),
    )
    setting = (
        "One minute of speech in 1,875 steps of 32 ms, each with the state of the one before; latency of one step. "
        "Calibrated on half a minute of synthesized sounds."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, checks)


def _nncf() -> Runnable:
    """Fails as long as OpenVINO cannot read the model."""
    path = made(
        "bench.peers:nncf_openvino",
        ".xml",
        "nncf",
        models.silero(),
        data.speech_calibration(),
        transformer=False,
    )
    return file_runnable(NNCF_OPENVINO, path, ORT, data.speech_recording(), job=JOB)


def _ort_static() -> Runnable:
    path = made(
        "bench.silero_jobs:ort_static",
        ".onnx",
        "onnxruntime",
        models.silero(),
        data.speech_calibration(),
        method="MinMax",
    )
    return file_runnable(ort_static_name("MinMax"), path, ORT, data.speech_recording(), job=JOB)


CASE = Case("silero", "Silero VAD, a detector of speech with a state", measure)
