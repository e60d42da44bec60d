"""The Report in a terminal: one line per candidate, the verdict, and where the page lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fewbits.report import words
from fewbits.report.ranking import Kind, Outcome, outcome, ranked
from fewbits.report.record import Candidate, Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES: dict[Kind, str] = {
    "chosen": "bold green",
    "best": "bold yellow",
    "met": "",
    "unknown": "dim",
    "failed": "dim",
    "error": "dim red",
}
_MARKS: dict[Kind, str] = {
    "chosen": "\N{HEAVY CHECK MARK}",
    "best": "~",
    "met": "\N{CHECK MARK}",
    "unknown": "?",
    "failed": "\N{BALLOT X}",
    "error": "!",
}
_MEDIUM, _WIDE, _WIDEST = 100, 120, 140
"""From so many columns on there is room for: the ratio of sizes; load time and memory; the engine."""


def table(report: Report, width: int = 120) -> Table:
    """The candidates, best first, one line each; reasons that do not fit in `width` end in an ellipsis."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", width=width)
    made.add_column("candidate", no_wrap=True)
    if width >= _WIDEST:
        made.add_column("engine", no_wrap=True)
    decimals = words.decimals_for(one.latency_ms.p50 for one in report.candidates)
    columns: tuple[tuple[str, int, Callable[[Candidate], str]], ...] = (
        ("size", 0, lambda one: words.size(one.size_bytes)),
        ("of original", _MEDIUM, lambda one: words.share(one.size_ratio)),
        ("median", 0, lambda one: words.milliseconds(one.latency_ms.p50, decimals)),
        ("speedup", 0, lambda one: words.times(one.speedup)),
        ("score", 0, lambda one: words.score(one.metric, report.metric)),
        ("drop", 0, lambda one: words.drop(one.drop, report.metric)),
        ("load", _WIDE, lambda one: words.milliseconds(one.load_ms)),
        ("memory", _WIDE, lambda one: words.size(one.resident_bytes)),
    )
    shown = [(head, cell) for head, least, cell in columns if width >= least]
    for head, _ in shown:
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("outcome", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in ranked(report):
        what = outcome(report, one)
        name = words.shortened(one.name, 28 if width >= _MEDIUM else 20)
        engine = [words.shortened(_engine(one), 20)] if width >= _WIDEST else []
        cells = (name, *engine, *(cell(one) for _, cell in shown), _outcome(what))
        # Names and an engine's own messages may hold brackets: Text, so that none is read as markup.
        made.add_row(*map(Text, cells), style=_STYLES[what.kind])
    return made


def throughput(report: Report, width: int = 120) -> Table | None:
    """Samples per second at the batch sizes that were asked for; None where none was."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sizes = report.batches
    if not sizes:
        return None
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("samples per second", no_wrap=True)
    for size in sizes:
        made.add_column(f"batch {size}", justify="right", no_wrap=True)
    for one in ranked(report):
        found = {part.batch: part.samples_per_s for part in one.throughput}
        if found:
            made.add_row(
                Text(words.shortened(one.name, 28 if width >= _MEDIUM else 20)),
                *(Text(words.rate(found.get(size))) for size in sizes),
                style=_STYLES[outcome(report, one).kind],
            )
    return made


def stages(report: Report) -> Table | None:
    """What every stage of training took and gave; None where nothing was trained."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not report.stages:
        return None
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.add_column("stage", no_wrap=True)
    for head in ("size", "median", "score", "drop", "MACs", "zeros", "seconds"):
        made.add_column(head, justify="right", no_wrap=True)
    decimals = words.decimals_for(one.latency_ms.p50 for one in report.candidates)
    for one in report.stages:
        file = None if one.candidate is None else report.candidate(one.candidate)
        measured = ("", "", "", "")
        if file is not None:
            measured = (
                words.size(file.size_bytes),
                words.milliseconds(file.latency_ms.p50, decimals),
                words.score(file.metric, report.metric),
                words.drop(file.drop, report.metric),
            )
        taken = (words.count(one.macs), words.share(one.sparsity), words.seconds(one.seconds))
        made.add_row(*map(Text, (one.name, *measured, *taken)))
    return made


def show(report: Report, console: Console, page: str | None = None) -> None:
    """Print the table, the verdict, and `page`, the path of the written report, to `console`."""
    from rich.text import Text

    console.print(table(report, console.width))
    for more in (stages(report), throughput(report, console.width)):
        if more is not None:
            console.print(more)
    samples = "" if report.metric.samples is None else f", {words.count(report.metric.samples)} samples"
    against = "" if report.reference is None else f"; speedup against {report.reference}"
    way = "" if report.metric.higher_is_better else ", lower is better"
    console.print(Text(f"score: {report.metric.name}{samples}{way}{against}", style="dim"))
    console.print()
    console.print(Text(report.verdict, style="bold"))
    shown = report.shown
    if shown is not None and report.chosen is None:
        for why in shown.failed:
            console.print(Text(f"  fails: {why}", style="yellow"))
    for found in report.signatures:
        console.print(Text(f"  {words.signature(found)}"))
    for note in report.notes:
        console.print(Text(f"  {note}", style="dim"))
    if page is not None:
        console.print(Text(f"Report: {page}"), soft_wrap=True)


def text(report: Report, page: str | None = None, width: int | None = None) -> str:
    """What `show` prints, as plain text without colours; `width` columns, else the terminal's own."""
    import io
    import shutil

    from rich.console import Console

    columns = width or shutil.get_terminal_size((120, 24)).columns
    out = io.StringIO()
    show(report, Console(file=out, width=columns, color_system=None, force_terminal=False), page)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def _engine(one: Candidate) -> str:
    return one.engine if one.precision is None else f"{one.engine} {one.precision}"


def _outcome(what: Outcome) -> str:
    """A mark and the reasons, or the word where there are none; what fails or cannot run says why at once."""
    reasons = " ".join("; ".join(what.reasons).split())
    if reasons and what.kind in ("failed", "error"):
        return f"{_MARKS[what.kind]} {reasons}"
    return f"{_MARKS[what.kind]} {what.word}" + (f": {reasons}" if reasons else "")
