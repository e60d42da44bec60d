"""When trying ends early: its time is over, or somebody pressed Ctrl-C. What was found until then is kept."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from fewbits.errors import InputError

Found = TypeVar("Found")
Say = Callable[[str], None]

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


class NothingMore(Exception):
    """Nothing new is to be begun."""


class Ending:
    """How long trying goes on: until its time is over, or the first Ctrl-C once there is something to keep.

    A second Ctrl-C stops at once.

    Attributes:
        budget_s: its time, seconds; None for as long as it takes.
        say: told in a line what will happen.
        time_over: something was left out because there was no time for it.
        interrupted: Ctrl-C was pressed, once.
        reserved_s: how long what has been begun still takes, seconds; to be kept up to date.
    """

    def __init__(
        self,
        budget_s: float | None = None,
        say: Say = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_s = budget_s
        self.time_over = self.interrupted = False
        self.reserved_s = 0.0
        self.say, self._clock, self._start = say, clock, clock()

    @property
    def early(self) -> bool:
        """Whether something was cut short."""
        return self.time_over or self.interrupted

    @property
    def left_s(self) -> float:
        """Seconds until the time is over, what has been begun not counted."""
        return math.inf if self.budget_s is None else self._start + self.budget_s - self._clock()

    def check(self) -> None:
        """To be called before anything new is begun. Raises NothingMore where the run is to end."""
        if self.interrupted or self.left_s <= self.reserved_s:
            raise NothingMore

    @contextmanager
    def keeping(self, something: Callable[[], bool]) -> Iterator[None]:
        """What is inside ends early, without an error, when its time is over or at the first Ctrl-C.

        Ctrl-C goes on as ever where there is nothing to keep, and the second time.
        """
        try:
            yield
        except NothingMore:
            self.time_over |= not self.interrupted
        except KeyboardInterrupt:
            if not something():
                raise
            self._interrupt()

    def finishing(self, step: Callable[[], Found], something: Callable[[], bool] = lambda: True) -> Found:
        """What ``step`` gives; where the first Ctrl-C meets it, it is done once more from its start.

        Ctrl-C goes on as ever where there is nothing to keep, and the second time.
        """
        try:
            return step()
        except KeyboardInterrupt:
            if not something():
                raise
            self._interrupt()
            return step()

    def _interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say(
            "interrupted: finishing with what was tried; Ctrl-C again stops at once, with nothing written"
        )


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A new folder that is gone behind it, though Ctrl-C be pressed while it is made: tempfile may leave one then."""
    folder = Path(tempfile.gettempdir()) / f"{prefix}{uuid4().hex}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_budget(text: str | float | None) -> float | None:
    """Seconds: a number of them, or text with units, such as ``90s``, ``10m`` or ``1h30m``.

    Raises:
        InputError: neither of these, or not more than nothing.
    """
    if text is None:
        return None
    seconds = -1.0
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text)
    elif isinstance(text, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(s|min|m|h)\s*", text.strip().lower())
        if parts and re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:s|min|m|h)\s*)+", text.strip().lower()):
            seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise InputError(f"time_budget is {text!r}; give a time with its unit, such as 90s, 10m or 1h30m")
    return seconds
