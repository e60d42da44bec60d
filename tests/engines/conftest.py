"""Fixtures for the tests of engines."""

import itertools

import pytest

from fewbits.candidates import Draft
from fewbits.planning.recipe import PRESETS, assign
from tests.stages import stages, trying


@pytest.fixture
def write(tmp_path):
    """Writes a tiny model as a recipe says, for a target that need not be in the table; the file."""
    numbers = itertools.count()

    def write_one(tiny, recipe, target, opset=17):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        recipe = PRESETS[recipe] if isinstance(recipe, str) else recipe
        data = tiny.samples(16)
        run = stages._begin(
            tiny.save(folder / "float.onnx", opset),
            data,
            data,
            target.engine,
            1,
            0,
            folder,
            lambda stage, done, total: None,
        )
        draft = Draft(recipe, target, assign(recipe, run.model.info))
        written = trying.write(run, draft, trying.observe_for(run, [draft]), folder / "written")
        return written.path

    return write_one
