"""Run a model whose outputs feed its next step over sequences, as if it took all their steps at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fewbits.engines.engine import Session
from fewbits.feeding import Feeds, Intake

START = "fewbits.start"
"""In such feeds: which of their steps are the first of a sequence, bool [steps]."""


class Stepping:
    """A session for feeds whose arrays all have steps along their first axis; its outputs have them there too.

    State goes from one call to the next, so that a sequence may be longer than what is fed at a time: memory does not
    grow with its length. It starts as the data says, or with zeros.
    """

    def __init__(self, session: Session, intake: Intake) -> None:
        self._session, self._intake = session, intake
        self._carried: Feeds = {}
        self.input_names, self.output_names = session.input_names, session.output_names

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run step by step. Raises as `Session.run`."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.output_names}
        for step in self.steps(self._intake, feeds):
            outputs = self._session.run({**self._carried, **step})
            self._carried = {name: outputs[output] for output, name in self._intake.state.items()}
            for name, array in outputs.items():
                found[name].append(np.atleast_1d(array))
        return {name: _joined(arrays) for name, arrays in found.items()}

    @staticmethod
    def steps(intake: Intake, feeds: Mapping[str, np.ndarray]) -> Iterator[Feeds]:
        """What the model takes in each step; without its state, except in the first step of a sequence."""
        for number, starts in enumerate(feeds[START]):
            step = {}
            for port in intake.ports:
                name = port.info.name
                if port.state and not starts:
                    continue
                value = feeds[name][number] if name in feeds else intake.start(name)
                if port.axis is not None and value.ndim < len(port.info.shape):
                    value = np.expand_dims(value, port.axis)
                step[name] = np.asarray(value, order="C")
            yield step


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """All steps in one array; flat where they differ in shape, as a state that grows does."""
    if len({array.shape[1:] for array in arrays}) > 1:
        arrays = [array.reshape(-1) for array in arrays]
    return np.concatenate(arrays)
