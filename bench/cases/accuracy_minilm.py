"""MiniLM in few bits, tables and all: STS benchmark, nearest neighbours, bytes, and the time it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from bench import data, models, quality
from bench.case import Case, Tell
from bench.entrants import NNCF, fewbits, inference_peak, made, nncf
from bench.keep import kept, version
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import THREADS, CaseResult, Check, Column, Row, Rows, Runnable, file_runnable
from fewbits.engines.engine import EngineSettings
from fewbits.errors import FewbitsError

COLUMNS = (
    Column("mb", "MB", "{:.2f}"),
    Column("spearman", "Spearman", "{:.2f}"),
    Column("agreement", "agreement", "{:.4f}"),
    Column("seconds", "s to make", "{:.0f}"),
    Column("peak_mb", "peak MB", "{:.0f}"),
)
IN_TORCH = {"optimum-quanto int4": "quanto4", "optimum-quanto int2": "quanto2"}
"""Peers that compress linear layers in PyTorch, by what `bench.torch_minilm` calls them."""
W8A8, NNCF_INT4 = "fewbits w8a8", "NNCF int4 weights"
OVER_NNCF = 0.015
MOST_SECONDS = 300


@dataclass(frozen=True)
class Wanted:
    """A preset of few bits, at an effort: Spearman and agreement at least, MB at most."""

    recipe: str
    effort: str
    spearman: float
    mb: float
    agreement: float | None = None

    @property
    def name(self) -> str:
        """Its row."""
        return f"fewbits {self.recipe}, {self.effort}"


WANTED = (
    Wanted("w4", "normal", 81.8, 13.5, 0.85),
    Wanted("w3", "normal", 81.0, 10.5, 0.70),
    Wanted("w2", "high", 76.0, 8.0),
)


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    pairs, scores = data.sentence_pairs()
    paragraphs = data.minilm_paragraphs()
    calibration = partial(data.minilm_calibration, 256, 128)
    float_outputs = _in_torch("float", pairs, paragraphs)
    reference = np.load(float_outputs.paragraphs)

    def scored(name: str, role: str, make: Callable[[], _Made]) -> Row:
        tell(name)
        try:
            found = make()
        except (MissingError, JobError, FewbitsError) as error:
            return Row(name, role, error=str(error))
        spearman = quality.pair_correlation(np.load(found.pairs), scores)
        agreement = quality.neighbour_agreement(reference, np.load(found.paragraphs))
        measured = {"mb": found.size_bytes / 1e6, "spearman": spearman, "agreement": agreement}
        return Row(name, role, found.size_bytes, scores=measured | found.spent)

    static = [*nncf(models.minilm, calibration, pairs, transformer=True)]
    static += [fewbits(W8A8, "w8a8", models.minilm, calibration, pairs)]

    def original() -> _Made:
        return replace(float_outputs, spent={"peak_mb": inference_peak(models.minilm(), calibration()) / 1e6})

    rows = [scored("float32", "float", original)]
    rows += [scored(one.name, one.role, lambda one=one: _of_file(one.make(), paragraphs)) for one in static]
    rows += [scored(NNCF_INT4, "peer", lambda: _of_file(_nncf_int4(pairs), paragraphs))]
    rows += [
        scored(name, "peer", lambda variant=variant: _in_torch(variant, pairs, paragraphs))
        for name, variant in IN_TORCH.items()
    ]
    rows += [scored(one.name, "fewbits", lambda one=one: _ours(one, pairs, paragraphs)) for one in WANTED]
    setting = (
        "Spearman's correlation, in percent, of cosines with the scores of the STS benchmark's 1,379 test pairs, 64 "
        "tokens; agreement: is the nearest neighbour of each of 2,000 paragraphs of WikiText-2 the same as in float32, "
        "128 tokens. w8a8 and NNCF calibrate on 256 paragraphs of WikiText-2 valid and run in OpenVINO; w4, w3 and w2 "
        "learn from 512, cut to 128 tokens and as sentences, in PyTorch, and are the safetensors of fb.save. Every "
        "weight matrix and table of fewbits' is in the named width; NNCF's int4 has its tables in int8, quanto's in "
        "float. Seconds are those from the float module to the file, with two threads allowed. Peak memory is that of "
        "the process; float32's is that of running the ONNX file on paragraphs of 128 tokens, one by one."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, tuple(rows), _checks(Rows(rows)))


@dataclass(frozen=True)
class _Made:
    """Outputs for the pairs and for the paragraphs, bytes, and what making it took, where that is measured."""

    pairs: Path
    paragraphs: Path
    size_bytes: int
    spent: dict[str, float]


def _of_file(runnable: Runnable, paragraphs: Path) -> _Made:
    """What is made for the pairs, run on the paragraphs as well."""
    contestant = runnable.contestant
    again = file_runnable(contestant.name, contestant.path, contestant.settings, paragraphs)
    spent = {} if runnable.peak_bytes is None else {"peak_mb": runnable.peak_bytes / 1e6}
    return _Made(runnable.outputs, again.outputs, runnable.size_bytes, spent)


def _nncf_int4(samples: Path) -> Runnable:
    path = made("bench.peers:nncf_int4", ".xml", "nncf", models.minilm(), None)
    return file_runnable(NNCF_INT4, path, EngineSettings("openvino", "f32", THREADS), samples)


def _in_torch(variant: str, pairs: Path, paragraphs: Path, **spent: float) -> _Made:
    """A variant of `bench.torch_minilm`; of a peer the outputs are kept."""
    files = (Path(variant),) if variant.endswith(".safetensors") else ()
    package = "optimum-quanto" if variant.startswith("quanto") else "torch"
    outs = {
        str(samples): kept(
            "outputs",
            f"minilm-{Path(variant).stem}",
            ".npy",
            (*files, samples),
            variant="" if files else variant,
            version=version(package),
        )
        for samples in (pairs, paragraphs)
    }
    size = outs[str(paragraphs)].with_suffix(".json")
    if not size.is_file():
        found = call(
            "bench.torch_minilm:outputs",
            variant=variant,
            samples={name: str(out) for name, out in outs.items()},
        )
        size.write_text(str(found.value))
    return _Made(outs[str(pairs)], outs[str(paragraphs)], int(size.read_text()), spent)


def _ours(wanted: Wanted, pairs: Path, paragraphs: Path) -> _Made:
    path = cached(f"modules/minilm-{wanted.recipe}-{wanted.effort}.safetensors")
    learnt = call(
        "bench.torch_minilm:made",
        recipe=wanted.recipe,
        effort=wanted.effort,
        calibration=str(data.minilm_batches()),
        out=str(path),
        threads=THREADS,
    )
    return _in_torch(str(path), pairs, paragraphs, seconds=learnt.value, peak_mb=learnt.peak_bytes / 1e6)


def _checks(rows: Rows) -> tuple[Check, ...]:
    found = [
        rows.score_check("w8a8: Spearman", W8A8, "spearman", lambda: 81.9, "at least"),
        rows.size_check("w8a8: MB", W8A8, 24e6),
        rows.score_check(
            f"w8a8: agreement, NNCF's plus {OVER_NNCF}",
            W8A8,
            "agreement",
            lambda: rows.best("agreement", *NNCF) + OVER_NNCF,
            "at least",
        ),
        rows.peak_check("w8a8", W8A8, "float32"),
    ]
    for one in WANTED:
        spearman, agreement = one.spearman, one.agreement
        found += [
            rows.score_check(
                f"{one.recipe}: Spearman", one.name, "spearman", lambda x=spearman: x, "at least"
            ),
            rows.size_check(f"{one.recipe}: MB", one.name, one.mb * 1e6),
        ]
        if agreement is not None:
            found.append(
                rows.score_check(
                    f"{one.recipe}: agreement", one.name, "agreement", lambda x=agreement: x, "at least"
                )
            )
        found.append(rows.peak_check(one.recipe, one.name, "float32"))
        if one.effort == "normal":
            found.append(
                rows.score_check(
                    f"{one.recipe}: seconds", one.name, "seconds", lambda: MOST_SECONDS, "at most"
                )
            )
    return tuple(found)


CASE = Case("minilm", "MiniLM on the STS benchmark, in few bits", measure)
