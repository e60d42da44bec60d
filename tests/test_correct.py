"""Biases corrected in a network: by what a batch norm says without data, and layer after layer with some."""

from dataclasses import replace

import numpy as np
import pytest

from fewbits.errors import VerificationError
from fewbits.models.model import open_model
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, write_recipe
from tests.stages import sqnr_db, write_files
from tests.tiny import CONV_BN, Tiny

NORMED = Tiny(
    """g (float[N, 3, 8, 8] x) => (float[N, 24, 8, 8] y) {
        a = Conv (x, w1)
        b = BatchNormalization (a, gain, shift, mean, variance)
        c = Relu (b)
        y = Conv (c, w2, b2)
    }""",
    {"w1": (16, 3, 1, 1), "w2": (24, 16, 1, 1), "b2": (24,)},
    {"x": ((3, 8, 8), None)},
    {
        "gain": np.linspace(0.2, 1, 16, dtype=np.float32),
        "shift": np.linspace(-1, 3, 16, dtype=np.float32),
        "mean": np.zeros(16, np.float32),
        "variance": np.full(16, 1, np.float32),
    },
)

BEHIND_A_SUM = Tiny(
    """g (float[N, 8, 8, 8] x) => (float[N, 24, 6, 6] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        s = Add (a, x)
        b = BatchNormalization (s, gain, shift, mean, variance)
        c = Relu (b)
        y = Conv (c, w2)
    }""",
    {"w1": (8, 8, 3, 3), "w2": (24, 8, 3, 3)},
    {"x": ((8, 8, 8), None)},
    {
        "gain": np.linspace(0.5, 1, 8, dtype=np.float32),
        "shift": np.linspace(-1, 1, 8, dtype=np.float32),
        "mean": np.linspace(-2, 2, 8, dtype=np.float32),
        "variance": np.full(8, 2, np.float32),
    },
)


def normalized(folder):
    """The net with statistics that are those of its first convolution's outputs, as a trained one has them."""
    proto = NORMED.proto()
    weights = {one.name: one for one in proto.graph.initializer}
    import onnx
    from onnx import numpy_helper

    spread = np.square(numpy_helper.to_array(weights["w1"])).sum(axis=(1, 2, 3))
    weights["variance"].CopyFrom(numpy_helper.from_array(spread.astype(np.float32), "variance"))
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def written(path, data, folder, name, **switches):
    """Recipe ``name`` with switches, written for OpenVINO: the files, and how close they are, dB."""
    place = folder / "-".join(f"{key}{value}" for key, value in switches.items())
    place.mkdir()
    recipe = place / "recipe.toml"
    plain = replace(PRESETS[name], smooth=False, compensate=False, learn=False, equalize=False)
    recipe.write_text(write_recipe(ResolvedRecipe(replace(plain, **switches))), encoding="utf-8")
    return write_files(path, data, str(recipe), place, "openvino")


def closeness(files, feeds):
    expected, checker = files.float_outputs(feeds), files.checker(feeds)
    assert all(checker.difference(one) is None for one in files.candidates)
    return min(sqnr_db(expected, files.session(one).run(feeds)) for one in files.candidates)


def test_a_batch_norm_says_what_the_next_layer_reads(tmp_path):
    layer = open_model(normalized(tmp_path)).info.layers[1]
    np.testing.assert_allclose(layer.expected.mean, NORMED.constants["shift"])
    np.testing.assert_allclose(layer.expected.std, NORMED.constants["gain"])
    assert (layer.expected.low, layer.expected.high) == (0, float("inf"))


def test_without_data_a_batch_norm_is_enough(tmp_path):
    path, feeds = normalized(tmp_path), NORMED.samples(64)
    got = [closeness(written(path, None, tmp_path, "w3", correct=one), feeds) for one in (False, True)]
    assert got[1] > got[0] + 3


@pytest.mark.parametrize(("name", "least"), [("w3", 2), ("w4a8", 0.5)])
def test_with_data_layer_after_layer(tmp_path, name, least):
    path, feeds = normalized(tmp_path), NORMED.samples(64)
    files = [written(path, feeds, tmp_path, name, correct=one) for one in (False, True)]
    assert any("dB closer" in note for note in files[1].run.notes)
    got = [closeness(one, feeds) for one in files]
    assert got[1] > got[0] + least


def test_a_correction_that_brings_nothing_closer_is_left_out(tmp_path):
    draw = np.random.default_rng(0)
    feeds = {"image": draw.standard_normal((1, 3, 8, 8)).astype(np.float32) * np.float32(1e-30)}
    path = CONV_BN.save(tmp_path / "m.onnx")
    files = written(path, feeds, tmp_path, "w8a8", correct=True)
    assert np.isfinite(closeness(files, feeds))


def test_a_batch_norm_that_is_left_is_estimated_anew(tmp_path):
    path, feeds = BEHIND_A_SUM.save(tmp_path / "m.onnx"), BEHIND_A_SUM.samples(64)
    feeds["x"] += np.linspace(-2, 2, 8, dtype=np.float32)[:, None, None]
    files = [written(path, feeds, tmp_path, "w2", correct=one) for one in (False, True)]
    got = [closeness(one, feeds) for one in files]
    assert got[1] > got[0] + 2
    assert not any("biases" in note for note in files[1].run.notes)  # it has none
    (file,) = files[1].written
    (norm,) = file.plan.norms
    assert norm.mean.shape == norm.variance.shape == (8,)
    other = replace(file.plan, norms=(replace(norm, variance=norm.variance * 2),))
    with pytest.raises(VerificationError, match="variance' differs from the plan"):
        file.model.read_back(file.path, other)


def test_few_samples_leave_a_batch_norm_with_finite_statistics(tmp_path):
    """Or samples without any variance."""
    path = BEHIND_A_SUM.save(tmp_path / "m.onnx")
    for name, feeds in {
        "one": BEHIND_A_SUM.samples(1),
        "zeros": {"x": np.zeros((4, 8, 8, 8), np.float32)},
    }.items():
        (tmp_path / name).mkdir()
        files = written(path, feeds, tmp_path / name, "w2", correct=True)
        assert all(np.isfinite([one.mean, one.variance]).all() for one in files.written[0].plan.norms)
