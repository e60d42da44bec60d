"""About how long a run will take, from one run of the original; said before anything long is begun."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbits import npz
from fewbits.candidates import Candidate, Draft
from fewbits.correct import SAMPLES as CORRECTED_SAMPLES
from fewbits.damage import WORST
from fewbits.engines.engine import get
from fewbits.errors import EngineError, InputError
from fewbits.feeding import Feeds
from fewbits.measure.latency import BLOCK_SECONDS, ROUNDS
from fewbits.planning.model_info import ModelInfo
from fewbits.throughput import ROUNDS as BATCH_ROUNDS

# Seconds, as they came out for ResNets, MiniLM and Magika on two cores; they are right within a factor of two.
START_S = 1.0  # a worker starts, imports its runtime and comes to rest
TURN_S = 0.05  # a worker comes to rest after its block
AGAIN = 1.4  # what is close to the fastest is measured twice as long
OBSERVED = 3.0  # runs that a calibration sample costs, and a millisecond for its histograms
CHECKED = 30.0  # runs that checking a file against its plan costs
LAYER_S, PARAM_S = 0.09, 2e-7  # to round a layer against data, and each of its weights
CORRECTED, CORRECTED_LAYER_S = 2.0, 0.03  # runs that a sample costs torch, and a layer's bias beside them
JUDGED_LAYER_S = 0.02  # what a recipe does to a layer, for the heat map
ALONE_S = 0.1  # to write a file with one layer rounded
LEARNED = (
    8.0  # runs of an engine that a sample costs torch, forward and back: once in its blocks, once in all
)
REPORT_S = 2.0
TIMED_RUNS = 3
RANDOM_SAMPLES = 16  # where there is no data
UNKNOWN_SAMPLES = 256  # where the data does not tell how many it has


@dataclass(frozen=True)
class Pace:
    """How fast this machine is with this model: seconds to load the original, and to run it on a sample."""

    load_s: float
    run_s: float


@dataclass(frozen=True)
class Estimate:
    """Seconds that each part of a run takes, about; falling back by layer is not in it.

    Attributes:
        score_s: to score a candidate.
        calibrate_s: to observe the calibration data.
        correct_s: to correct a recipe's biases.
        judge_s: to find what a recipe does to each layer.
        write_s: to write a file.
        measure_s: to measure a candidate.
        check_s: to check one.
        learn_s: to learn a recipe.
        alone_s: to measure the layers that lose most, each alone; left out where a run ends early.
        files, candidates: how many of them there are, originals among the candidates.
        calibrated: files that use the calibration data.
        equalized: recipes that may rescale channels, which is observed again.
        learned, corrected: recipes that learn, or else correct; all files of one have the same codes.
        recipes: how many there are.
    """

    score_s: float
    calibrate_s: float
    correct_s: float
    judge_s: float
    write_s: float
    measure_s: float
    check_s: float
    learn_s: float
    alone_s: float
    files: int
    calibrated: int
    equalized: int
    learned: int
    corrected: int
    recipes: int
    candidates: int

    @property
    def total_s(self) -> float:
        """All of it."""
        observed = self.equalized + (1 if self.calibrated else 0)
        return (
            observed * self.calibrate_s
            + self.learned * self.learn_s
            + self.corrected * self.correct_s
            + self.recipes * self.judge_s
            + self.files * self.write_s
            + self.candidates * self.score_s
            + self.after(self.candidates)
            + self.alone_s
        )

    def after(self, scored: int) -> float:
        """What is left to do where so many candidates have been scored."""
        return scored * self.measure_s + self.finishing(scored)

    def finishing(self, measured: int) -> float:
        """What is left to do where so many have been measured."""
        return measured * self.check_s + REPORT_S


def pace(originals: Sequence[Candidate], sample: Feeds, size: int) -> Pace:
    """Load the original in the first engine that can, and run it a few times, on so many samples at once."""
    for one in originals:
        start = time.perf_counter()
        try:
            session = get(one.settings.engine).compile(one.file.path, one.settings)
            loaded = time.perf_counter()
            times = []
            for _ in range(TIMED_RUNS):
                at = time.perf_counter()
                session.run(sample)
                times.append(time.perf_counter() - at)
            return Pace(loaded - start, min(times) / size)
        except EngineError:
            continue
    return Pace(0.0, 0.0)  # no engine can; the run will end with that


def estimate(
    found: Pace,
    info: ModelInfo,
    planned: Sequence[Draft],
    candidates: int,
    batches: int,
    calibration_samples: int,
    scoring_samples: int,
    learned_samples: int = 0,
) -> Estimate:
    """What a run comes to.

    Args:
        found: how fast the original is.
        info: of the model.
        planned: the files to be written.
        candidates: how many there are, originals among them.
        batches: at how many further batch sizes throughput is measured.
        calibration_samples, scoring_samples: how many there are, about; 0 to calibrate with where there is no data.
        learned_samples: of how many the steps of a recipe that learns make use, with repetition; 0: nothing is learned.
    """
    count, params = len(info.layers), sum(layer.params for layer in info.layers)
    rounds = ROUNDS * (max(BLOCK_SECONDS, found.run_s) + TURN_S) * AGAIN
    started = START_S + found.load_s
    score_s = found.load_s + scoring_samples * found.run_s
    write_s = count * LAYER_S + params * PARAM_S
    corrected = min(calibration_samples, CORRECTED_SAMPLES) * CORRECTED * found.run_s
    recipes = {one.recipe.name: one.recipe for one in planned}.values()
    learned = sum(one.learn for one in recipes) if learned_samples else 0
    return Estimate(
        score_s=score_s,
        calibrate_s=calibration_samples * (OBSERVED * found.run_s + 1e-3),
        correct_s=write_s + corrected + count * CORRECTED_LAYER_S,
        judge_s=count * JUDGED_LAYER_S,
        write_s=write_s,
        measure_s=started + rounds + batches * (started + rounds * BATCH_ROUNDS / ROUNDS),
        check_s=found.load_s + CHECKED * found.run_s,
        learn_s=2 * learned_samples * found.run_s * LEARNED,
        alone_s=found.load_s + WORST * (ALONE_S + found.load_s + score_s),
        files=len(planned),
        calibrated=sum(one.recipe.uses_data for one in planned) if calibration_samples else 0,
        equalized=sum(one.equalize for one in recipes) if calibration_samples and info.links else 0,
        learned=learned,
        corrected=sum(one.correct and not (one.learn and learned) for one in recipes)
        if calibration_samples
        else 0,
        recipes=len(recipes),
        candidates=candidates,
    )


def sample_count(data: Any) -> int:
    """About how many samples there are, without reading them: the longest first axis."""
    lengths: list[int] = []
    if data is None:
        return RANDOM_SAMPLES
    if isinstance(data, (str, Path)):
        lengths = _rows(Path(data))
    elif isinstance(data, Mapping):
        lengths = [_length(value) for value in data.values()]
    elif hasattr(data, "shape"):
        lengths = [_length(data)]
    elif hasattr(data, "dataset") and hasattr(data.dataset, "__len__"):
        lengths = [len(data.dataset)]
    elif isinstance(data, Sequence):
        lengths = [sum(map(_length, data))]
    return max(lengths, default=0) or UNKNOWN_SAMPLES


def _length(array: Any) -> int:
    """Of the first axis; none for a scalar, and what is no array."""
    shape: Sequence[int] = getattr(array, "shape", ())
    return shape[0] if shape else 0


def _rows(path: Path) -> list[int]:
    """First axes of an archive's arrays; what is wrong with it is said where it is read."""
    try:
        return [shape[0] for shape in npz.shapes(path) if shape]
    except InputError:
        return []
