"""Hold written files, run in their engines, against the plan's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewbits.candidates import Candidate
from fewbits.engines.engine import EngineSettings, Session, get, literal_session
from fewbits.errors import EngineError
from fewbits.models.model import Model
from fewbits.samples import Samples

MARGIN_DB = (
    6.0  # an engine may add as much error as was there already: half the energy each, and as much again
)
FLOOR_DB = 60.0  # agreement better than this is float rounding
ROUNDED_ACTIVATIONS_DB = (
    40.0  # what rounding activations in groups of 32 leaves, where the engine was told to
)


class Checker:
    """Compares candidates on a few samples, one batch at a time and compiled for its shape, as they are measured.

    An engine may compute something else for a shape known in advance: OpenVINO 2026.4 gives nonsense for int8
    products without a bias, fewer than 16 rows at a time, and is right where the number of rows is open.

    The yardstick is the plan spelled out: weights as the numbers that their codes stand for, activations quantized
    and brought back one by one, every operator run in float32 as written. An engine may add as much error to it as the
    plan has, or as the engine has on the original at the same precision, whichever is more.
    """

    def __init__(self, model: Model, samples: Samples, count: int, folder: Path) -> None:
        self.model, self.samples, self.folder = model, samples, folder
        self.batches = samples.some(count, 1)
        self.shapes = {name: array.shape for name, array in samples.one_run().items()}
        self._original = self._run(literal_session(model.path, 1))
        self._spelled_out: dict[Path, list[np.ndarray]] = {}
        self._plain: dict[EngineSettings, list[np.ndarray]] = {}

    def difference(self, candidate: Candidate) -> str | None:
        """What is wrong with the engine's result, in one line; None where it is what the plan says."""
        settings = candidate.settings
        try:
            got = self._run(self._compiled(candidate.file.path, settings))
            expected = self._expected(candidate)
            allowed = min(FLOOR_DB, _sqnr(self._original, expected), self._precision(settings))
        except EngineError as error:
            return str(error)
        if settings.activation_group_size or _rounds_state(candidate):
            allowed = min(allowed, ROUNDED_ACTIVATIONS_DB)
        sqnr = _sqnr(expected, got)
        if sqnr >= allowed - MARGIN_DB:
            return None
        return (
            f"{settings.engine} does not compute what the plan says: {sqnr:.1f} dB, where {allowed - MARGIN_DB:.1f} "
            "are expected; the file is not handed over"
        )

    def _expected(self, candidate: Candidate) -> list[np.ndarray]:
        path, plan, model = candidate.file.path, candidate.file.plan, candidate.file.model
        assert plan is not None and model is not None
        if path not in self._spelled_out:
            spelled = self.folder / f"spelled_out.{self.model.format}"
            model.spell_out(plan, spelled)
            self._spelled_out[path] = self._run(literal_session(spelled, 1))
            spelled.unlink()
        return self._spelled_out[path]

    def _precision(self, settings: EngineSettings) -> float:
        """What the engine keeps of the original at that precision, dB; all, where it cannot run it."""
        plain = EngineSettings(settings.engine, settings.precision, settings.threads)
        if plain not in self._plain:
            try:
                self._plain[plain] = self._run(self._compiled(self.model.path, plain))
            except EngineError:
                self._plain[plain] = self._original
        return _sqnr(self._original, self._plain[plain])

    def _compiled(self, path: Path, settings: EngineSettings) -> Session:
        return get(settings.engine).compile(path, settings, self.shapes)

    def _run(self, session: Session) -> list[np.ndarray]:
        session = self.samples.session(session)
        outputs = [array for feeds in self.batches for array in session.run(feeds).values()]
        return [array for array in outputs if array.dtype.kind == "f"]


def _rounds_state(candidate: Candidate) -> bool:
    """Whether an LSTM quantizes its state from step to step, which no plain operators spell out."""
    plan = candidate.file.plan
    return plan is not None and any(layer.dynamic and layer.op == "LSTM" for layer in plan.layers)


def _sqnr(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in expected)
    noise = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(expected, got, strict=True))
    return float("inf") if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise))
