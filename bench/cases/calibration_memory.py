"""Peak memory of calibrating on 224 x 224 images, with 64 and with 1,024 samples."""

from __future__ import annotations

from bench import data, models
from bench.case import Case, Tell
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import CaseResult, Check, Column, Row

FEW, MANY = 64, 1024
HELD_OUT = 128
COLUMNS = (
    Column("few", f"MB, {FEW} samples", "{:.0f}"),
    Column("many", f"MB, {MANY} samples", "{:.0f}"),
    Column("growth", "ratio", "{:.3f}"),
)


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    rows = (
        _row("NNCF int8 (OpenVINO model)", "peer", "bench.jobs:nncf_static", "nncf.xml", tell),
        _row("fewbits w8a8", "fewbits", "bench.jobs:fewbits_static", "fewbits", tell),
    )
    what = f"peak memory with {MANY} samples over that with {FEW}"
    ours = rows[-1]
    check = Check(what, ours.scores.get("growth"), 1.10, "at most", why=ours.error or "")
    setting = (
        "ResNet-18, w8a8, images streamed from an .npz. Peak resident memory of the whole process, from "
        "reading to the written file."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows, (check,))


def _row(name: str, role: str, job: str, out: str, tell: Tell) -> Row:
    peaks = []
    for samples in (FEW, MANY):
        tell(f"{name}, {samples} samples")
        try:
            done = call(
                job,
                source=str(models.resnet18()),
                calibration=str(data.large_images("train", samples)),
                held_out=str(data.large_images("test", HELD_OUT)),
                out=str(cached(f"memory/{samples}-{out}")),
            )
        except (MissingError, JobError) as error:
            return Row(name, role, error=str(error))
        peaks.append(done.peak_bytes / 1e6)
    few, many = peaks
    return Row(name, role, scores={"few": few, "many": many, "growth": many / few})


CASE = Case("calibration-memory", "Peak memory of calibration", measure)
