"""fewbits through its public way, in a process of its own; takes and gives JSON values."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.table import THREADS
from fewbits.engines.engine import EngineSettings


def compress(source: str, calibration: str, recipe: str, out: str) -> dict[str, Any]:
    """Compress with one recipe for the best engine: the file handed over, how it is to be run, and a note.

    Only calibration data is given, so nothing is tuned on what this benchmark scores.
    """
    report, folder = _compressed(source, calibration, recipe, out)
    shown = report.shown
    settings = EngineSettings(shown.engine, shown.precision, THREADS)
    return {
        "path": str(folder / shown.path),
        "settings": asdict(settings),
        "note": f"{shown.recipe} in {shown.engine} at {shown.precision}",
    }


def refusal(source: str, calibration: str, precision: str, out: str) -> list[str]:
    """What the report of recipe auto gives as reasons against the original at a float precision."""
    report, _ = _compressed(source, calibration, "auto", out)
    originals = [one for one in report.candidates if one.original and one.precision == precision]
    return [reason for candidate in originals for reason in candidate.failed]


def seconds(source: str, calibration: str, out: str) -> float:
    """The seconds that loading, calibrating, planning and writing w8a8 took, without measuring."""
    report, _ = _compressed(source, calibration, "w8a8", out)
    return sum(report.timings_s[stage] for stage in ("load", "observe", "plan", "apply", "write"))


def _compressed(source: str, calibration: str, recipe: str, out: str) -> tuple[Any, Path]:
    import fewbits as fb

    shutil.rmtree(out, ignore_errors=True)
    result = fb.compress(source, calibration, recipe=recipe, threads=THREADS, out=out)
    return result.report, Path(result.out)
