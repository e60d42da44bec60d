"""The process that runs one contestant of a latency measurement; `python -m fewbits.measure.worker`.

It reads one request per line from standard input and answers each with one line on standard output, both
JSON. Between requests it blocks on its input. The requests, in order:

- ``prepare``: import the runtime and read the feeds, so that neither counts as loading. Answer: nothing.
- ``load``: compile the file (or call the factory), then run it a few times. Answer: ``load_ms``, the
  time to compile; ``resident_bytes``, what compiling and running added to the process.
- ``block``: run for ``seconds``. Answer: ``times_ns``, one entry per counted run.

A failure is answered with ``error``, one line, and ends the worker, as does the end of its input.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TextIO

WARM_UP_S = 0.1
WARM_UP_RUNS = 3
# A block starts with this share of its time uncounted: caches and threads come back from the others' turn.
SETTLE = 0.1
# Idle means: less than this share of one core over a window. ONNX Runtime's threads spin for some 35 ms
# before they sleep. The window holds several ticks of the system's clock, by which threads are charged.
IDLE_SHARE, IDLE_WINDOW_S, IDLE_LIMIT_S = 0.1, 0.02, 2.0


Run = Callable[[], object]
Load = Callable[[], Run]


class Runner:
    """Loads what was prepared, then runs it in blocks."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._resident_before = _resident_bytes()
        self._run: Run = lambda: None
        self._typical_s = 0.0

    def load(self) -> dict[str, Any]:
        """Compile and warm up."""
        start = time.perf_counter_ns()
        self._run = self._load()
        load_ns = time.perf_counter_ns() - start
        times = timed_runs(self._run, WARM_UP_S, WARM_UP_RUNS)
        self._typical_s = min(times) / 1e9
        resident = _resident_bytes() - self._resident_before
        return {"load_ms": load_ns / 1e6, "resident_bytes": max(0, resident)}

    def block(self, seconds: float) -> dict[str, Any]:
        """Run for that long, and at least once."""
        if self._typical_s < seconds:  # one run of a slow model is longer than whatever it must settle from
            timed_runs(self._run, SETTLE * seconds, 1)
        return {"times_ns": timed_runs(self._run, seconds, 1)}


def timed_runs(run: Run, seconds: float, at_least: int) -> list[int]:
    """Call ``run`` until ``seconds`` have passed and ``at_least`` calls were made; nanoseconds each."""
    times: list[int] = []
    now = time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while now < end or len(times) < at_least:
        start = time.perf_counter_ns()
        run()
        now = time.perf_counter_ns()
        times.append(now - start)
    return times


def wait_until_idle() -> None:
    """Return once this process uses no CPU; the next contestant's turn must not begin before.

    Raises RuntimeError for a process that does not come to rest.
    """
    deadline = time.perf_counter() + IDLE_LIMIT_S
    while True:
        cpu, wall = time.process_time(), time.perf_counter()
        time.sleep(IDLE_WINDOW_S)
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        if share < IDLE_SHARE:
            return
        if time.perf_counter() > deadline:
            raise RuntimeError(
                f"{share:.0%} of a core is busy {IDLE_LIMIT_S:g} s after the last run: it would slow others"
            )


def _prepare_file(request: dict[str, Any]) -> Load:
    import numpy as np

    from fewbits.engines.engine import EngineSettings, get, repeated

    settings = EngineSettings(**request["settings"])
    engine = get(settings.engine)
    engine.prepare()
    with np.load(request["feeds"], allow_pickle=False) as archive:
        feeds = {name: archive[name] for name in archive.files}
    shapes = {name: array.shape for name, array in feeds.items()}

    def load() -> Run:
        session = engine.compile(request["path"], settings, shapes)
        return repeated(session, feeds)

    return load


def _prepare_callable(request: dict[str, Any]) -> Load:
    module, _, factory = request["factory"].partition(":")
    make = getattr(importlib.import_module(module), factory)
    return lambda: make(**request["kwargs"])


_PREPARE = {"file": _prepare_file, "callable": _prepare_callable}


def serve(requests: SimpleQueue[dict[str, Any]], answers: TextIO) -> None:
    """Answer requests until one fails."""
    runner: Runner | None = None
    while True:
        request = requests.get()
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "prepare":
                runner = Runner(_PREPARE[request["kind"]](request))
            elif runner is None:
                raise RuntimeError("a worker must be prepared first")
            elif request["do"] == "load":
                answer = runner.load()
            else:
                answer = runner.block(request["seconds"])
            wait_until_idle()
        except Exception as error:
            answer = {"error": " ".join(f"{_prefix(error)}{error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return


def _prefix(error: Exception) -> str:
    """Our own errors are whole sentences; others need their type to be understood."""
    from fewbits.errors import FewbitsError

    return "" if isinstance(error, FewbitsError) else f"{type(error).__name__}: "


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _read_requests(requests: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    # The measuring process is gone, or done with this one: stop, even in the middle of a run.
    os._exit(0)


def main() -> None:
    """Serve the process on the other end of standard input and output."""
    # Whatever a runtime prints goes to standard error, so that standard output carries answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    serve(requests, answers)
    # The other thread waits on its input and would hold up a normal exit.
    os._exit(0)


if __name__ == "__main__":
    main()
