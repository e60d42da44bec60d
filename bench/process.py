"""Calls one function in a process of its own, so that what it imports and starts is gone when it returns.

`python -m bench.process REQUEST` is the other end: REQUEST is JSON with `function` ("module:function") and
`arguments`; one line of JSON is the answer.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from bench.paths import ROOT, MissingError

TIMEOUT_S = 3600


class JobError(Exception):
    """The function raised, or its process died; one line says how."""


@dataclass(frozen=True)
class Done:
    """What a call gave: its JSON value, its wall time without starting Python, its process' peak memory."""

    value: Any
    seconds: float
    peak_bytes: int


def call(function: str, **arguments: Any) -> Done:
    """Call "module:function" with JSON arguments in a new process and wait.

    Raises:
        MissingError: the function raised it.
        JobError: anything else went wrong.
    """
    request = json.dumps({"function": function, "arguments": arguments})
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "bench.process", request],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"{function}: not done after {TIMEOUT_S} s") from None
    if finished.returncode:
        said = [line for line in finished.stderr.splitlines() if line.strip()]
        raise JobError(f"{function}: exit code {finished.returncode}: {said[-1] if said else 'no message'}")
    answer = json.loads(finished.stdout)
    if "missing" in answer:
        raise MissingError(answer["missing"])
    return Done(**answer)


def peak_bytes() -> int:
    """The largest resident set of this process so far; what it started does not count."""
    try:
        # Unlike ru_maxrss, this does not include what the parent held when it forked.
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Serve one request."""
    # Libraries print as they please: all of it goes to standard error, the answer alone to standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    module, _, name = request["function"].partition(":")
    start = time.perf_counter()
    try:
        value = getattr(importlib.import_module(module), name)(**request["arguments"])
    except MissingError as error:
        answers.write(json.dumps({"missing": str(error)}))
    else:
        answers.write(json.dumps(asdict(Done(value, time.perf_counter() - start, peak_bytes()))))
    answers.close()


if __name__ == "__main__":
    main()
