"""Results as tables: one set of cells, shown on a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.entrants import FLOATS, LITERT_F32
from bench.table import CaseResult, Check, Row
from fewbits.measure.latency import ratio


def show(result: CaseResult, console: Console) -> None:
    """Print a case on a terminal."""
    console.print(f"\n[bold]{result.title}[/bold] ({result.name}). {result.setting}")
    table = Table(box=None, pad_edge=False)
    for heading in _headings(result):
        table.add_column(heading, justify="left" if heading == "contestant" else "right", no_wrap=True)
    for row, cells in zip(result.rows, _cells(result), strict=True):
        table.add_row(*cells, style="bold" if row.role == "fewbits" else None)
    console.print(table)
    for remark in _remarks(result):
        console.print(f"  {remark}", style="dim", highlight=False, markup=False)
    for check in result.checks:
        colour = {True: "green", False: "red", None: "yellow"}[check.reached]
        console.print(f"  [{colour}]{_verdict(check)}[/{colour}] {escape(_sentence(check))}", highlight=False)


def markdown(result: CaseResult) -> str:
    """A case as a section in Markdown."""
    headings = _headings(result)
    lines = [f"### {result.title}", "", result.setting, ""]
    lines += [_line(headings), _line(["---"] * len(headings))]
    lines += [_line(cells) for cells in _cells(result)]
    lines += ["", *(f"- {remark}" for remark in _remarks(result))]
    lines += [f"- **{_verdict(check)}**: {_sentence(check)}" for check in result.checks]
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _headings(result: CaseResult) -> list[str]:
    timed = ["MB", "ms p50", "p10 to p90", "speedup"] if _timed(result) else []
    return ["contestant", *timed, *(column.heading for column in result.columns)]


def _cells(result: CaseResult) -> list[list[str]]:
    measured = [row for row in result.rows if row.latency is not None]
    floats = [row for row in measured if row.name in (*FLOATS, LITERT_F32)]
    floats = floats or [row for row in measured if row.role == "float"]
    best = min(floats, key=lambda row: row.latency.p50_ms if row.latency else 0.0, default=None)
    cells = []
    for row in result.rows:
        scores = [
            column.form.format(row.scores[column.key]) if column.key in row.scores else ""
            for column in result.columns
        ]
        timed = _time_cells(row, best) if _timed(result) else []
        cells.append([row.name, *timed, *scores])
    return cells


def _remarks(result: CaseResult) -> list[str]:
    said = ((row.name, f"failed: {row.error}" if row.error else row.note) for row in result.rows)
    return [f"{name}: {remark}" for name, remark in said if remark]


def _timed(result: CaseResult) -> bool:
    return any(row.latency is not None for row in result.rows)


def _time_cells(row: Row, best: Row | None) -> list[str]:
    latency = row.latency
    if latency is None:
        return ["", "", "", ""]
    speedup = ""
    if best is not None and best.latency is not None:
        speedup = f"{ratio(best.latency, latency).value:.2f}"
    return [
        f"{row.size_bytes / 1e6:.{2 if row.size_bytes >= 1e6 else 4}f}",
        f"{latency.p50_ms:.3f}",
        f"{latency.p10_ms:.3f} to {latency.p90_ms:.3f}",
        speedup,
    ]


def _verdict(check: Check) -> str:
    return {True: "reached", False: "not reached", None: "not measured"}[check.reached]


def _sentence(check: Check) -> str:
    if check.value is None:
        return f"{check.what}: {check.why}"
    interval = "" if check.low is None else f" [{check.low:.3f} to {check.high:.3f}]"
    why = f" ({check.why})" if check.why else ""
    return f"{check.what}: {check.value:.4g}{interval}, {check.sense} {check.limit:.4g}{why}"
