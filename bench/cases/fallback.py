"""A depthwise net whose channels differ in size: 8 bits lose far more than 1 % unless these are equalized."""

from __future__ import annotations

from bench import models
from bench.case import Case, Tell
from bench.data import digits
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import CaseResult, Check, Column, Row

COLUMNS = (
    Column("top1", "top-1 %", "{:.2f}"),
    Column("drop", "drop", "{:.2f}"),
    Column("raised", "layers raised", "{:.0f}"),
)


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    tell("compressing with recipe w8a8")
    rows: tuple[Row, ...]
    try:
        calibration, scored = digits()
        found = call(
            "bench.ours:fallbacks",
            source=str(models.depthwise()),
            calibration=str(calibration),
            scored=str(scored),
            out=str(cached("fewbits/depthwise-w8a8")),
        ).value
    except (MissingError, JobError) as error:
        rows, checks = (), (Check("drop, %", None, 1.0, "at most", why=str(error)),)
    else:
        rows = tuple(Row(one["name"], one["role"], scores=one["scores"]) for one in found["rows"])
        checks = tuple(
            check
            for one in found["rows"]
            if "raised" in one["scores"]
            for check in (
                Check(f"{one['name']}: drop, % of the score", one["relative"], 1.0, "at most"),
                Check(
                    f"{one['name']}: share of layers raised",
                    one["scores"]["raised"] / one["layers"],
                    1 / 3,
                    "at most",
                ),
            )
        )
    setting = (
        "14 layers, every other channel that a depthwise convolution reads is 100 times as large. Calibrated on "
        "256 digits, scored on the 597 that did not train it."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows, checks)


CASE = Case("fallback", "Falling back by layer", measure)
