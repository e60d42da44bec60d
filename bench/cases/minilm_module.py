"""The sentence encoder of `minilm`, given as a PyTorch module straight from transformers, beside its ONNX file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bench import data, models, process
from bench.case import Case, Tell
from bench.cases.minilm import COLUMNS, score
from bench.entrants import fewbits, floats, torch_minilm
from bench.paths import cached
from bench.table import CaseResult, Check, Entrant, Runnable, file_runnable, run
from fewbits.engines.engine import EngineSettings

MODULE = "bench.models:minilm_module"
RECIPES = ("w8", "w8a8")
EXPORT_S = 60.0
SAME_SPEED = 1.05
SAME_COSINE = 0.001


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    samples = data.minilm_paragraphs()
    calibration = partial(data.minilm_calibration, 256, 128)
    seconds: list[float] = []
    rows = run(
        [
            *floats(models.minilm, samples),
            torch_minilm("PyTorch fp32", "float", "torch", calibration, samples),
            *(
                entrant
                for recipe in RECIPES
                for entrant in (
                    fewbits(_file(recipe), recipe, models.minilm, calibration, samples),
                    _from_module(recipe, calibration(), samples, seconds),
                )
            ),
        ],
        samples,
        score,
        tell,
    )
    worst = max(seconds, default=None)
    checks = [
        Check("export and comparison, s", worst, EXPORT_S, "at most", why="" if worst else "not exported")
    ]
    for recipe in RECIPES:
        ours, other = _module(recipe), _file(recipe)
        checks += (
            rows.time_check(f"{recipe}: latency over the ONNX file's", ours, (other,), SAME_SPEED),
            rows.score_check(
                f"{recipe}: minimum cosine, the ONNX file's less {SAME_COSINE}",
                ours,
                "cosine_min",
                lambda other=other: rows.best("cosine_min", other) - SAME_COSINE,
                "at least",
            ),
        )
    setting = (
        "The module is exported by fewbits for 128 tokens and any batch; the ONNX file has both axes open. "
        "Data, samples and scores as in the case of the file."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, tuple(checks))


def _file(recipe: str) -> str:
    return f"fewbits {recipe}, ONNX file"


def _module(recipe: str) -> str:
    return f"fewbits {recipe}, module"


def _from_module(recipe: str, calibration: Path, samples: Path, seconds: list[float]) -> Entrant:
    """What fewbits makes of the module; adds the seconds that exporting took."""

    def make() -> Runnable:
        made = process.call(
            "bench.ours:compress",
            source=MODULE,
            calibration=str(calibration),
            recipe=recipe,
            max_drop="1%",
            out=str(cached(f"fewbits/minilm_module-{recipe}")),
        ).value
        seconds.append(made["export_s"])
        settings = EngineSettings(**made["settings"])
        return file_runnable(_module(recipe), Path(made["path"]), settings, samples, made["note"])

    return Entrant(_module(recipe), "fewbits", make)


CASE = Case("minilm_module", "MiniLM as a PyTorch module", measure)
