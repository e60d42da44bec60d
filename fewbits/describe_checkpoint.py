"""Put what became of a Hugging Face directory into a Report, and the files beside its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits import __version__
from fewbits.candidates import ORIGINAL
from fewbits.engines.cpu import cpu
from fewbits.handover import REPORT
from fewbits.machine import this_machine
from fewbits.models.checkpoint import FORMAT
from fewbits.models.checkpoint.folder import CONFIG
from fewbits.models.checkpoint.plan import TensorPlan
from fewbits.models.checkpoint.stored import FLOATS
from fewbits.models.checkpoint.write import Energy, WrittenCheckpoint, dtype_name
from fewbits.numerics import find
from fewbits.planning.recipe import write_recipe
from fewbits.report import record as r
from fewbits.report.html import render

if TYPE_CHECKING:
    from fewbits.checkpoint import Job

LOADER = "transformers"
PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
METRIC = r.Metric(
    name="weight SQNR",
    unit=" dB",
    description="signal to noise of all weights that changed, read back from the written files; nothing was run",
)


def describe_checkpoint(
    job: Job, written: WrittenCheckpoint, timings: Mapping[str, float], folder: Path
) -> r.Report:
    """Build the report, and write it, its page, the recipe and the lines that load the model into ``folder``."""
    candidate = _candidate(job, written)
    chosen = None if candidate.failed else candidate.name
    report = r.Report(
        fewbits=__version__,
        machine=_machine(job.threads),
        source=r.Source(
            path=job.checkpoint.path.resolve().name,
            size_bytes=job.checkpoint.size_bytes,
            format=FORMAT,
            params=sum(_elements(one) for one in job.plan.tensors),
        ),
        metric=METRIC,
        limits=r.Limits(max_size=None if job.asked is None else str(job.asked), size_limit_bytes=job.limit),
        chosen=chosen,
        saved=candidate.name,
        verdict=_verdict(candidate),
        candidates=(_original(job), candidate),
        layers=tuple(_layer(job, written, one) for one in job.plan.tensors if one.layer is not None),
        left_in_float=_left_in_float(job),
        bytes_by_dtype=dict(written.bytes_by_dtype),
        bytes_by_dtype_original=_original_bytes(job),
        timings_s={name: round(seconds, 3) for name, seconds in timings.items()},
        snippet=_how(job).snippet,
        files=_files(job, folder),
        notes=job.plan.notes,
    )
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")
    return report


def _candidate(job: Job, written: WrittenCheckpoint) -> r.Candidate:
    size = written.size_bytes
    failed: tuple[str, ...] = ()
    if job.limit is not None and size > job.limit:
        failed = (f"size {size / 1e6:.2f} MB is over {job.limit / 1e6:.2f} MB",)
    how = _how(job)
    return r.Candidate(
        name=job.plan.recipe,
        recipe=job.plan.recipe,
        engine=LOADER,
        precision=_precision(job.plan.config),
        path=CONFIG,
        size_bytes=size,
        size_ratio=size / job.checkpoint.size_bytes,
        metric=_decibel(sum(written.energy.values(), Energy())),
        met=not failed,
        failed=failed,
        note="its speed and its outputs were not measured",
        weight_form=how.form,
        folded=how.folded,
    )


@dataclass(frozen=True)
class _How:
    """How weights are written, whether they come back as floats, and the lines and libraries that load them."""

    form: str
    folded: str | None
    snippet: str
    needs: str


def _how(job: Job) -> _How:
    model = job.layers.model or "AutoModel"
    snippet = f'from transformers import {model}\n\nmodel = {model}.from_pretrained(".")'
    quantization = job.plan.config.get("quantization_config")
    if job.plan.form is None:
        return _How("plain tensors", None, snippet, "transformers, not fewbits")
    if quantization is None:
        own = 'import fewbits as fb\n\nmodel = fb.load(".")'
        return _How(f"{job.plan.form.name}: codes and scales", None, own, "fewbits and transformers")
    return _How(
        f"{job.plan.form.name} {quantization['format']}",
        "transformers brings the weights back when it loads them: saves file, not memory",
        snippet,
        "transformers and compressed-tensors, not fewbits",
    )


def _original(job: Job) -> r.Candidate:
    return r.Candidate(
        name=ORIGINAL,
        recipe=ORIGINAL,
        engine=LOADER,
        precision=_precision(job.checkpoint.config),
        original=True,
        size_bytes=job.checkpoint.size_bytes,
        size_ratio=1.0,
        note="for comparison only",
    )


def _precision(config: Mapping) -> str | None:
    dtype = config.get("dtype") or config.get("torch_dtype")
    return PRECISIONS.get(str(dtype))


def _verdict(one: r.Candidate) -> str:
    share = f"{one.size_ratio:.0%} of the bytes"
    lost = "" if one.metric is None else f", weights at {one.metric:.1f} dB"
    if one.failed:
        return f"{one.name} misses the limit ({'; '.join(one.failed)}) and was written all the same: {share}{lost}."
    return f"Wrote {one.name}: {share}{lost}; neither its speed nor its outputs were measured."


def _layer(job: Job, written: WrittenCheckpoint, one: TensorPlan) -> r.Layer:
    assert one.layer is not None
    stored = dtype_name(one.parts[0].dtype)
    return r.Layer(
        name=one.layer.name,
        op=one.layer.op,
        scheme=stored if one.scheme is None else str(one.scheme),
        bits=8 * one.parts[0].nbytes / max(_elements(one), 1)
        if one.scheme is None
        else find(one.scheme.qtype).bits,
        params=_elements(one),
        bytes=one.nbytes,
        weight_sqnr_db=_decibel(written.energy.get(one.entry.name, Energy())),
        shape=one.entry.shape,
        why=one.why,
    )


def _decibel(energy: Energy) -> float | None:
    return 10 * math.log10(energy.signal / energy.noise) if energy.signal and energy.noise else None


def _elements(one: TensorPlan) -> int:
    return math.prod(one.entry.shape)


def _left_in_float(job: Job) -> tuple[r.LeftInFloat, ...]:
    reasons: Counter[tuple[str, str]] = Counter()
    for one in job.plan.tensors:
        if one.scheme is not None or one.cast or one.entry.dtype not in FLOATS:
            continue
        if one.layer is not None:
            reasons[one.layer.op, one.why or "has as few bits already"] += 1
        else:
            reasons[
                job.layers.others.get(one.entry.name, ("tensor", "is tied, and stored with other values"))
            ] += 1
    return tuple(r.LeftInFloat(op=op, count=count, why=why) for (op, why), count in reasons.most_common())


def _original_bytes(job: Job) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entry in job.checkpoint.entries.values():
        found[dtype_name(entry.dtype)] += entry.nbytes
    return dict(found.most_common())


def _files(job: Job, folder: Path) -> tuple[r.File, ...]:
    """Write the recipe and the lines that load the model; list what is handed over."""
    (folder / "recipe.toml").write_text(write_recipe(job.resolved), encoding="utf-8")
    how = _how(job)
    lines = how.snippet.replace('"."', "Path(__file__).parent").replace(
        "\n\n", "\nfrom pathlib import Path\n\n"
    )
    (folder / "run.py").write_text(f"# Loads the model; needs {how.needs}.\n{lines}\n", encoding="utf-8")
    shards = sorted({one.target for one in job.plan.tensors})
    return (
        *(
            r.File(path=shard.as_posix(), what="weights", size_bytes=(folder / shard).stat().st_size)
            for shard in shards
        ),
        r.File(path=CONFIG, what="what model it is, and how to load it"),
        r.File(path="recipe.toml", what="makes the same bytes again"),
        r.File(path="run.py", what="loads it"),
        r.File(path=REPORT, what="this report as data"),
    )


def _machine(threads: int) -> r.Machine:
    found = {}
    for package in (LOADER, "compressed-tensors", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return this_machine(cpu(), threads, found)
