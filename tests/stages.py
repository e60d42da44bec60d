"""The stages of the main job up to the written files, without scores and latencies."""

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewbits import trying
from fewbits.candidates import Candidate, Written, drafts, resolve
from fewbits.engines.engine import Session, get, literal_session
from fewbits.feeding import PLAIN
from fewbits.samples import open_samples
from fewbits.verify import Checker

stages = importlib.import_module("fewbits.compress")  # the name fewbits.compress is the function's


@dataclass(frozen=True)
class Files:
    """What a recipe wrote, and how to run it."""

    run: object
    written: list[Written]

    @property
    def candidates(self) -> list[Candidate]:
        """Every written file in the engine it was written for, in float32, nothing rounded while it runs."""
        ways = trying.ways_of(self.run, [one.draft for one in self.written], "f32")
        return [
            Candidate(name, file, settings)
            for file, names in zip(self.written, ways, strict=True)
            for name, settings in names.items()
            if not settings.activation_group_size
        ]

    def session(self, candidate: Candidate) -> Session:
        """The file, compiled."""
        return get(candidate.settings.engine).compile(candidate.file.path, candidate.settings)

    def float_outputs(self, feeds) -> dict[str, np.ndarray]:
        """The original's outputs, every operator as written."""
        return literal_session(self.run.model.path, 1).run(feeds)

    def checker(self, feeds) -> Checker:
        """Compares engines with the plan."""
        return Checker(
            self.run.model,
            open_samples(feeds, self.run.model.info.inputs, feeding=self.run.feeding),
            len(next(iter(feeds.values()))),
            self.run.folder,
        )


def write_files(
    model: Path,
    data,
    recipe: str,
    folder: Path,
    engine: str = "auto",
    exclude=(),
    effort="fast",
    feeding=PLAIN,
    **asked,
) -> Files:
    """Load, observe, learn where effort allows, decide, write and read back."""
    run = stages._begin(
        model, data, data, engine, 1, 0, folder, lambda stage, done, total: None, feeding=feeding
    )
    run = replace(run, effort=effort)
    planned, passed_over = drafts(
        resolve(recipe, exclude, **asked), run.model.info, run.engines, run.cpu, data is not None
    )
    run.notes.extend(passed_over)
    planned = trying.different(run, planned)
    stats = trying.observe_for(run, planned)
    learned, ready, files = {}, {}, []
    for number, draft in enumerate(planned):
        name = draft.recipe.name
        if name not in ready:
            ready[name] = trying.equalized(run, draft, planned, stats)
        scaled, seen = ready[name]
        if name not in learned:
            learned[name] = trying.better_numbers(scaled, draft, seen)
        files.append(trying.write(scaled, draft, seen, folder / str(number), learned.get(name)))
    return Files(run, [one for one in files if one is not None])


def sqnr_db(expected, got) -> float:
    """Energy of the float outputs over that of the difference, dB."""
    pairs = [(expected[name].astype(float), got[name].astype(float)) for name in expected]
    signal = sum(float((a**2).sum()) for a, b in pairs)
    noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float("inf") if noise == 0 else 10 * np.log10(signal / noise)
