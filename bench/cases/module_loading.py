"""Loading a saved 4-bit module: beside reading its bytes and building the float module, which nobody can do without."""

from __future__ import annotations

from pathlib import Path

from bench.case import Case, Tell
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import THREADS, CaseResult, Role, Row, Rows
from fewbits.measure.latency import CallableContestant, measure_latency

SUBJECT = "t5"
LEAST, OURS = "bytes read, float module built", "fewbits w4_g128"
LEAST_EMPTY, OURS_EMPTY = (
    "bytes read, module built without values",
    "fewbits w4_g128, into one without values",
)
QUANTO, TORCHAO = "optimum-quanto int4", "torchao int4, groups of 128"
LIMIT = 1.5
ROUNDS = 7  # of seconds each


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    ours = cached(f"modules/{SUBJECT}-w4_g128.safetensors")
    save, recipe = "bench.in_torch:quantize", {"recipe": "w4_g128"}
    ways: tuple[tuple[str, Role, str, Path, str, dict[str, str]], ...] = (
        (LEAST, "float", "least", ours, save, recipe),
        (LEAST_EMPTY, "peer", "least_empty", ours, save, recipe),
        (QUANTO, "peer", "quanto", cached("modules/quanto.safetensors"), "bench.loading:save_quanto", {}),
        (TORCHAO, "peer", "torchao", cached("modules/torchao.pt"), "bench.loading:save_torchao", {}),
        (OURS, "fewbits", "fewbits", ours, save, recipe),
        (OURS_EMPTY, "fewbits", "fewbits_empty", ours, save, recipe),
    )
    rows: dict[str, Row] = {}
    contestants = []
    for name, role, load, path, writer, more in ways:
        tell(f"saving {name}")
        arguments = {"path": str(path), "subject": SUBJECT, "threads": THREADS}
        try:
            call(writer, **arguments, **more)
        except (MissingError, JobError) as error:
            rows[name] = Row(name, role, error=str(error))
            continue
        rows[name] = Row(name, role, path.stat().st_size)
        contestants.append(CallableContestant(name, f"bench.loading:{load}", arguments))
    tell("timing all side by side")
    for latency in measure_latency(contestants, {}, rounds=ROUNDS):
        row = rows[latency.name]
        measured = None if latency.error else latency
        rows[latency.name] = Row(row.name, row.role, row.size_bytes, measured, error=latency.error)
    found = Rows([rows[name] for name, *_ in ways])
    checks = (
        found.time_check("time over that of the least", OURS, (LEAST,), LIMIT),
        found.time_check("the same without values", OURS_EMPTY, (LEAST_EMPTY,), LIMIT),
    )
    setting = (
        "The architecture of flan-t5-small, from files that lie in the system's cache, in a process that has "
        "imported everything."
    )
    return CaseResult(CASE.name, CASE.title, setting, (), found.rows, checks)


CASE = Case("module-loading", "Loading a saved 4-bit module", measure)
