"""The measuring side of a worker: start it, ask it, and be sure that it ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class WorkerFailure(Exception):
    """A worker answered with an error, died, or did not answer in time; one line says which."""


class WorkerProcess:
    """One `fewbits.measure.worker`, which finds the modules that this process finds.

    Use as a context manager: on leaving, the worker is killed, with its process group where there is such.
    """

    def __init__(self) -> None:
        # "-P" keeps files that happen to lie in the working directory from passing for libraries.
        command = [sys.executable, "-P", "-m", "fewbits.measure.worker"]
        search = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": search},
            # A group of its own: Ctrl-C goes to the measuring process alone, a kill reaches grandchildren.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A thread per worker: the one way to wait on a pipe with a time limit that works on every system.
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def send(self, request: dict[str, Any]) -> None:
        """Hand over a request, without waiting for the answer."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died; `receive` says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the oldest unanswered request."""
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerFailure(f"no answer within {timeout_s:g} s") from None
        if line is None:
            raise WorkerFailure(self._how_it_died())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"])
        return answer

    def kill(self) -> None:
        """End the worker now, whatever it does; a second call does nothing."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):  # it ended just now
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._stderr):
            assert stream is not None
            with suppress(OSError):  # a request that was never read
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(None)

    def _how_it_died(self) -> str:
        code = self._process.wait()
        try:
            how = f"its process crashed ({signal.Signals(-code).name})"
        except ValueError:
            how = f"its process ended with exit code {code}"
        self._stderr.seek(0)
        said = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{how}: {said[-1].strip()}" if said else how
