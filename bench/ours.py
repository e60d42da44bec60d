"""fewbits through its public way, in a process of its own; takes and gives JSON values."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.table import THREADS

SMALLER = "50%"  # rules out the original in any engine, so that what is handed over is a compressed file


def compress(
    source: str,
    calibration: str,
    recipe: str,
    max_drop: str,
    out: str,
    state: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Compress with one recipe, for speed: the file handed over, how it is to be run, and a note.

    Only calibration data is given, so nothing is tuned on what this benchmark scores; fewbits keeps every fourth
    sample of it to choose with.
    """
    import fewbits as fb
    from fewbits.loaded import saved

    result = fb.compress(
        source,
        calibration,
        state=state,
        recipe=recipe,
        max_drop=max_drop,
        max_size=SMALLER,
        threads=THREADS,
        out=_place(out),
    )
    path, settings = saved(result.folder)
    shown = result.report.shown
    return {
        "path": str(path),
        "settings": asdict(settings),
        "export_s": result.report.timings_s.get("export"),
        "note": f"{shown.name}; {'meets' if result.met else 'does not meet'} its limits on calibration data",
    }


def smallest(source: str, calibration: str, recipe: str, out: str) -> str:
    """Compress a Keras file with one recipe, and take what it writes, however fast that is: its path."""
    import fewbits as fb
    from fewbits.loaded import saved

    result = fb.compress(
        source, calibration, recipe=recipe, max_drop="100%", prefer="size", threads=THREADS, out=_place(out)
    )
    return str(saved(result.folder)[0])


def learned(source: str, calibration: str, chosen_on: str, recipe: str, out: str) -> dict[str, Any]:
    """What a recipe gives at effort high, for quality, and the seconds from reading to the written file."""
    import fewbits as fb
    from fewbits.loaded import saved

    result = fb.compress(
        source,
        calibration,
        eval=chosen_on,
        recipe=recipe,
        engine="openvino",
        effort="high",
        max_drop="100%",
        max_size=SMALLER,
        prefer="quality",
        threads=THREADS,
        out=_place(out),
    )
    path, settings = saved(result.folder)
    took = result.report.timings_s
    spent = sum(took.get(stage, 0.0) for stage in ("load", "observe", "learn", "write"))
    return {"path": str(path), "settings": asdict(settings), "seconds": spent}


def refusal(source: str, calibration: str, precision: str, out: str) -> list[str]:
    """What the report of recipe auto gives as reasons against the original at a float precision."""
    import fewbits as fb

    report = fb.compress(source, calibration, threads=THREADS, out=_place(out)).report
    originals = [one for one in report.candidates if one.original and one.precision == precision]
    return [f"{one.name}: {reason}" for one in originals for reason in one.failed]


def fallbacks(source: str, calibration: str, scored: str, out: str) -> dict[str, Any]:
    """Original, `w8a8` without equalization and what falling back made of it, and `w8a8` as it is, in each engine.

    Score, drop, and layers raised.
    """
    import fewbits as fb
    from fewbits.planning.recipe import PRESETS, ResolvedRecipe, write_recipe

    recipe = Path(_place(out)).with_suffix(".toml")
    recipe.write_text(
        write_recipe(ResolvedRecipe(replace(PRESETS["w8a8"], equalize=False))), encoding="utf-8"
    )
    report = fb.compress(
        source, calibration, eval=scored, recipe=str(recipe), threads=THREADS, out=_place(out)
    ).report
    rows = []
    ways = {one.candidate: one for one in report.fallbacks}
    starts = {one.start for one in report.fallbacks}
    for one in report.candidates:
        if one.name == report.reference or one.name in starts or one.name in ways:
            scores = {"top1": one.metric, "drop": one.drop}
            if one.name in ways:
                scores["raised"] = len({layer for step in ways[one.name].steps for layer in step.layers})
            rows.append(
                {
                    "name": one.name,
                    "role": "float" if one.original else "fewbits",
                    "scores": scores,
                    "relative": 100 * (one.drop or 0.0) / (report.metric.original or 1.0),
                    "layers": ways[one.name].layers if one.name in ways else None,
                }
            )
    equalized = fb.compress(
        source, calibration, eval=scored, recipe="w8a8", threads=THREADS, out=_place(f"{out}-equalized")
    ).report
    rows += [
        {
            "name": f"{one.name}, equalized",
            "role": "fewbits",
            "scores": {"top1": one.metric, "drop": one.drop, "raised": len(equalized.fallbacks)},
            "relative": 100 * (one.drop or 0.0) / (equalized.metric.original or 1.0),
            "layers": 1,
        }
        for one in equalized.candidates
        if one.recipe == "w8a8"
    ]
    return {"rows": rows}


def write_seconds(source: str, calibration: str, held_out: str, out: str) -> float:
    """The seconds that reading, calibrating on all of `calibration` and writing w8a8 for OpenVINO took.

    What else `fewbits.compress` does (verify, score on `held_out`, measure, report) is not counted.
    """
    import onnxruntime  # noqa: F401 - imports are not counted
    import openvino  # noqa: F401

    import fewbits as fb

    result = fb.compress(
        source,
        calibration,
        eval=held_out,
        recipe="w8a8",
        engine="openvino",
        threads=THREADS,
        out=_place(out),
    )
    return sum(result.report.timings_s[stage] for stage in ("load", "observe", "write"))


def _place(out: str) -> str:
    os.makedirs(Path(out).parent, exist_ok=True)
    return out
