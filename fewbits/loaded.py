"""A model that runs: the same inputs and outputs as the one that came in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fewbits.engines.engine import EngineSettings, Session, get
from fewbits.errors import InputError
from fewbits.handover import REPORT


class LoadedModel:
    """A file compiled in an engine; call it with arrays in the order of the inputs, or by name.

    It gives one array where the model has one output, else a tuple in the model's order.
    """

    def __init__(self, path: Path, settings: EngineSettings) -> None:
        self.path = path
        self.settings = settings
        self.session: Session = get(settings.engine).compile(path, settings)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run once. Raises InputError where the inputs are not the model's."""
        names = self.session.input_names
        if len(arrays) == 1 and isinstance(arrays[0], dict):
            named = {**arrays[0], **named}
            arrays = ()
        if len(arrays) > len(names):
            raise InputError(f"{self.path}: {len(arrays)} inputs given; the model has {', '.join(names)}")
        feeds = {**dict(zip(names, arrays, strict=False)), **named}
        outputs = self.session.run({name: _array(value) for name, value in feeds.items()})
        values = tuple(outputs.values())
        return values[0] if len(values) == 1 else values

    def __repr__(self) -> str:
        s = self.settings
        threads = f"{s.threads} thread{'s' if s.threads > 1 else ''}"
        return f"<{self.path.name} in {s.engine} at {s.precision}, {threads}>"


def load(folder: str | Path) -> LoadedModel:
    """What ``compress`` saved in a folder, in the engine and with the settings that were measured.

    Raises:
        InputError: the folder was not written by fewbits, or holds no model.
    """
    folder = Path(folder)
    path, settings = saved(folder)
    return LoadedModel(path, settings)


def saved(folder: Path) -> tuple[Path, EngineSettings]:
    """Path and settings of the file that a folder hands over. Raises InputError as :func:`load`."""
    from fewbits.report.record import Report

    try:
        text = (folder / REPORT).read_bytes()
    except OSError as error:
        raise InputError(f"{folder}: no {REPORT} in it; give a folder that fewbits compress wrote") from error
    report = Report.from_json(text)
    shown = report.shown
    if shown is None or shown.path is None or shown.precision is None:
        raise InputError(f"{folder}: its report names no saved model")
    threads = shown.threads or 1
    rounding = int(shown.settings.get("activation_group_size", "0"))
    return folder / shown.path, EngineSettings(shown.engine, shown.precision, threads, rounding)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
