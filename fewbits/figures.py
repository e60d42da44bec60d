"""What candidates are compared by: scores and latencies against the original's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewbits.candidates import Candidate
from fewbits.errors import InputError
from fewbits.measure.latency import Latency, Ratio, ratio
from fewbits.measure.metrics import Metric
from fewbits.measure.quality import Quality


@dataclass(frozen=True)
class Throughput:
    """Of a candidate at one batch size: samples per second, and the median latency of a batch in ms."""

    batch: int
    samples_per_s: float | None
    p50_ms: float | None
    error: str | None = None


@dataclass(frozen=True)
class Part:
    """What was measured of a signature beside the main one: its score, and what it lost of what it may."""

    signature: str
    quality: Quality | None
    score: float | None
    drop: float | None
    allowed: float
    metric: Metric
    error: str | None = None

    @property
    def failed(self) -> str | None:
        """The limit that it fails, in words."""
        if self.drop is None or self.drop <= self.allowed:
            return None
        unit = self.metric.unit_of_drops
        return f"signature {self.signature!r}: drop {self.drop:.3g}{unit} is over {self.allowed:.3g}{unit}"


@dataclass(frozen=True)
class Outcome:
    """A candidate and what was measured of it; None where it could not be, with the reason in ``error``.

    Where only its score could not be computed, the reason is in ``unscored``. ``parts``: other signatures of its file.
    """

    candidate: Candidate
    latency: Latency | None = None
    quality: Quality | None = None
    score: float | None = None
    error: str | None = None
    unscored: str | None = None
    throughput: tuple[Throughput, ...] = ()
    parts: tuple[Part, ...] = ()


def unable(outcomes: Sequence[Outcome]) -> list[str]:
    """Of each engine that cannot run the original, why, and whether it runs what was written of it."""
    found = []
    for engine in dict.fromkeys(one.candidate.settings.engine for one in outcomes):
        mine = [one for one in outcomes if one.candidate.settings.engine == engine]
        errors = [one.error for one in mine if one.candidate.is_original and one.error is not None]
        if errors:
            runs = any(one.error is None for one in mine if not one.candidate.is_original)
            what = "cannot run the original, but what was written of it" if runs else "is out"
            found.append(f"{engine} {what}: {errors[0]}")
    return found


class Figures:
    """Ratios and drops of one run, against the original in float32 in the engine that runs it fastest.

    A framework that the model came from is none of these engines: nobody gains by being faster than what is not
    deployed. Ratios against it have a method of their own.
    """

    def __init__(self, outcomes: Sequence[Outcome], higher_is_better: bool = True) -> None:
        self.higher_is_better = higher_is_better
        measured = [one for one in outcomes if one.candidate.is_original and one.latency is not None]
        originals = [one for one in measured if not one.candidate.in_framework]
        self.source = self._fastest([one for one in measured if one.candidate.in_framework], "f32")
        if not originals:
            errors = "; ".join(one.error or "" for one in outcomes if one.candidate.is_original and one.error)
            raise InputError(f"no engine can run the original, so nothing can be compared with it: {errors}")
        able = [one for one in originals if one.score is not None]
        reference = self._fastest(able, "f32") or next(iter(able), None)
        if reference is None or reference.score is None:
            raise InputError("no engine that can be measured gives the original a score")
        self.reference, self.original_score = reference, reference.score
        self.bf16 = self._fastest(originals, "bf16")

    def speedup(self, outcome: Outcome) -> Ratio | None:
        """How many times faster than the reference; None where it was not measured."""
        return self._over(self.reference, outcome)

    def speedup_vs_bf16(self, outcome: Outcome) -> Ratio | None:
        """How many times faster than the original in its fastest engine at bf16."""
        return None if self.bf16 is None else self._over(self.bf16, outcome)

    def speedup_vs_source(self, outcome: Outcome) -> Ratio | None:
        """How many times faster than in the framework the model came from, in float32; None for a file."""
        return None if self.source is None else self._over(self.source, outcome)

    def drop(self, outcome: Outcome) -> float | None:
        """What is lost of the original's score, whichever way is better; negative where it gained."""
        return None if outcome.score is None else self.lost(outcome.score)

    def lost(self, score: float) -> float:
        """What is lost where the score is this one."""
        return self.original_score - score if self.higher_is_better else score - self.original_score

    def after(self, drop: float) -> float:
        """The score that is left after a drop."""
        return self.original_score - drop if self.higher_is_better else self.original_score + drop

    @staticmethod
    def _fastest(originals: Sequence[Outcome], precision: str) -> Outcome | None:
        able = [one for one in originals if one.candidate.settings.precision == precision]
        return min(able, key=lambda one: one.latency.p50_ms if one.latency else float("inf"), default=None)

    @staticmethod
    def _over(base: Outcome, outcome: Outcome) -> Ratio | None:
        if base.latency is None or outcome.latency is None:
            return None
        return ratio(base.latency, outcome.latency)
