"""Converters run in a process of their own: one that hangs, crashes or takes all memory is an error in one line.

Both ends are here. The calling end starts `python -m WORKER REQUEST ANSWER`, both JSON files; the worker's answer holds
``error``, one line, where it failed, and a worker that leaves no answer has crashed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewbits.errors import InputError

TIME_LIMIT_S = 900.0
MEMORY_LIMIT = 4 << 30  # beyond what the libraries take to be imported; and
MEMORY_TIMES = 16  # this many times the source


class Refused(Exception):
    """What is wrong with the model, in one line; raised in a worker."""


def convert_apart(
    worker: str, request: Mapping[str, Any], source: Path, what: str, folder: Path, env: Mapping[str, str]
) -> None:
    """Run the module ``worker`` on a request.

    Args:
        worker: the module's name; it calls :func:`serve`.
        request: JSON values for it; ``memory`` is added, the bytes that it may take.
        source: the file or folder that it reads.
        what: to call the model in errors.
        folder: for the request, the answer, and what the worker prints.
        env: variables of its environment, beside those of this process.

    Raises:
        InputError: it refused the model, failed, crashed, or was not done in time.
    """
    asked, answered, said = (folder / name for name in ("request.json", "answer.json", "said.txt"))
    answered.unlink(missing_ok=True)
    memory = MEMORY_LIMIT + MEMORY_TIMES * _size(source)
    asked.write_text(json.dumps({**request, "memory": memory}), encoding="utf-8")
    search = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    with said.open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", worker, str(asked), str(answered)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **env, "PYTHONPATH": search},
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{what}: the converter was not done in {TIME_LIMIT_S:g} s; convert it yourself, and give the file"
            ) from error
    answer = json.loads(answered.read_text(encoding="utf-8")) if answered.is_file() else {}
    if "error" in answer:
        raise InputError(f"{what}: {answer['error']}")
    if not answer:
        raise InputError(f"{what}: the converter crashed ({_how(done.returncode)}); convert it yourself")


def serve(convert: Callable[[dict[str, Any]], None]) -> None:
    """The worker's main function: do what the request says, and answer."""
    asked, answered = map(Path, sys.argv[1:])
    try:
        convert(json.loads(asked.read_text(encoding="utf-8")))
        answer: dict[str, Any] = {"done": True}
    except Refused as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "takes more memory than a model of its size may; it is not converted"}
    except Exception as error:
        answer = {"error": f"cannot be converted: {type(error).__name__}: {first_line(str(error))}"}
    answered.write_text(json.dumps(answer), encoding="utf-8")


def limit_memory(budget: int) -> None:
    """No more than that many bytes on top of what the process has taken so far."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    limit = psutil.Process().memory_info().vms + budget
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def first_line(text: str) -> str:
    """The first line of an error that says something, cut short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def _how(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code}"


def _size(source: Path) -> int:
    files = [source] if source.is_file() else [file for file in source.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
