"""Cases measured in one run, shown, and written: what `python -m bench` and its like have in common."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.case import Case
from bench.paths import CACHE, RESULTS, ROOT, MissingError
from bench.process import JobError
from bench.render import markdown, show
from bench.table import THREADS, CaseResult, Check, as_json

PACKAGES = (
    "fewbits",
    "onnxruntime",
    "openvino",
    "torch",
    "nncf",
    "optimum-quanto",
    "torchao",
    "transformers",
)
PIPED_WIDTH = 160
Machine = dict[str, Any]
SECTION = re.compile(r"(<!-- results -->\n)(.*)(<!-- end of results -->)", re.DOTALL)


@dataclass(frozen=True)
class Suite:
    """Cases that are measured in one run.

    Attributes:
        command: what starts it.
        about: it in a sentence.
        cases: in the order they run.
        results: name of the files that a full run writes.
        page: that its tables are published on.
        packages: whose versions are written beside the results.
    """

    command: str
    about: str
    cases: tuple[Case, ...]
    results: str
    page: Path
    packages: tuple[str, ...] = PACKAGES


def main(suite: Suite, arguments: Sequence[str] | None = None) -> int:
    """Run the cases; exit code 0 where no target was missed, 1 where one was, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog=suite.command, description=suite.about)
    cases = {case.name: case for case in suite.cases}
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"any of: {', '.join(cases)}; all by default"
    )
    parser.add_argument("--fresh", action="store_true", help="make the peers' files and outputs anew")
    parser.add_argument(
        "--publish", action="store_true", help="put the tables into the docs; those of other cases stay"
    )
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.cases if name not in cases]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    names = chosen.cases or list(cases)
    full = set(names) == set(cases)
    if chosen.fresh:
        for folder in ("peers", "tflite", "outputs"):
            shutil.rmtree(CACHE / folder, ignore_errors=True)
    progress = Console(stderr=True)
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    results = []
    for number, name in enumerate(names, 1):
        where = f"[{number}/{len(names)}] {name}"
        results.append(_measured(cases[name], where, progress))
        show(results[-1], console)
    machine = _machine(suite.packages)
    _write(results, machine, (RESULTS if full else CACHE / "results") / suite.results, console)
    if chosen.publish:
        _publish(results, machine, suite)
        console.print(f"Published in {suite.page.relative_to(ROOT)}.")
    checks = [check for result in results for check in result.checks]
    reached = sum(check.reached is True for check in checks)
    console.print(f"\n{reached} of {len(checks)} targets reached, {_unmeasured(checks)} not measured.")
    return 1 if any(check.reached is False for check in checks) else 0


def _measured(case: Case, where: str, progress: Console) -> CaseResult:
    def tell(what: str) -> None:
        progress.print(f"{where}: {what}", style="dim", highlight=False, markup=False)

    try:
        return case.measure(tell)
    except (MissingError, JobError) as error:
        why = Check("all targets of this case", None, 0.0, "at least", why=str(error))
        return CaseResult(case.name, case.title, "Not run.", (), (), (why,))


def _unmeasured(checks: Sequence[Check]) -> int:
    return sum(check.reached is None for check in checks)


def _machine(packages: Sequence[str]) -> Machine:
    from fewbits.engines.cpu import cpu

    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    here = cpu()
    return {
        "cpu": here.name,
        "isa": list(here.isa),
        "threads": THREADS,
        "python": sys.version.split()[0],
        "versions": versions,
    }


def _write(results: Sequence[CaseResult], machine: Machine, stem: Path, console: Console) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    document_path, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "cases": [as_json(result) for result in results],
    }
    document_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page.write_text("\n".join(_sections(results, machine).values()), encoding="utf-8")
    console.print(f"\nWritten: {document_path.relative_to(ROOT)} and {page.name} beside it.")


def _sections(results: Sequence[CaseResult], machine: Machine) -> dict[str, str]:
    """By title, a case's table with what it was measured on and when."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    here = f"{machine['cpu']} ({', '.join(machine['isa'])}), {machine['threads']} threads"
    measured = f"{here}. {versions}. {datetime.date.today().isoformat()}."
    return {one.title: f"{markdown(one)}\n{measured}\n" for one in results}


def _publish(results: Sequence[CaseResult], machine: Machine, suite: Suite) -> None:
    """Put these cases' sections in the place of those of the page; what stands before goes once all are new."""
    text = suite.page.read_text(encoding="utf-8")
    found = SECTION.search(text)
    assert found is not None
    before, *old = re.split(r"^(?=### )", found[2], flags=re.MULTILINE)
    sections = {one.split("\n", 1)[0].removeprefix("### "): one for one in old} | _sections(results, machine)
    titles = [case.title for case in suite.cases]
    whole = all(case.title in {one.title for one in results} for case in suite.cases)
    body = [
        "" if whole else before,
        *(sections[title].strip() + "\n\n" for title in titles if title in sections),
    ]
    suite.page.write_text(
        text[: found.start()] + found[1] + "".join(body).strip() + "\n" + found[3] + text[found.end() :],
        encoding="utf-8",
    )
