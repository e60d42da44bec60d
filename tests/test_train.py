"""`fewbits train`: stages from a recipe, interrupted and gone on with, in one report."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits

from fewbits.cli import main
from fewbits.errors import InputError
from fewbits.measure.latency import measure_latency
from fewbits.planning.training_recipe import read_training_recipe
from fewbits.report.record import Report
from fewbits.train import train, unfinished
from fewbits.training import QatModule
from fewbits.training.data import Batches, TrainingData
from fewbits.training.pipeline import run_stages
from fewbits.training.unfinished import go_on_in

NETS = """
import torch
from torch import nn
from tests.training.conftest import DigitsNet

def net():
    module = DigitsNet()
    module.load_state_dict(torch.load("net.pt"))
    return module.eval()

class Choosing(DigitsNet):
    def forward(self, image):
        return super().forward(image if image.sum() > 0 else -image)
"""
RECIPE = """
model = "digits_nets:net"
data = "train.npz"
eval = "test.npz"

[[stages]]
kind = "prune"
macs = 0.6

[[stages]]
kind = "sparsify"
sparsity = 0.3

[[stages]]
kind = "distil"
epochs = 2
lr = 5e-3

[[stages]]
kind = "qat"
recipe = "w4a8"
epochs = 2
lr = 1e-4

[[stages]]
kind = "export"
name = "digits.onnx"
"""


ARRAYS = load_digits()
X, Y = ARRAYS.images[:, None].astype(np.float32) / 16, ARRAYS.target.astype(np.int32)
STAGES = ["original", "1 prune", "2 sparsify", "3 distil", "4 qat"]


short_measuring = functools.partial(measure_latency, rounds=2, block_seconds=0.005)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a trained net, data, and a recipe."""
    from fewbits.training import fit
    from tests.training.conftest import Batches, DigitsNet

    folder = tmp_path_factory.mktemp("made")
    np.savez(folder / "train.npz", image=X[:900], labels=Y[:900])
    np.savez(folder / "test.npz", image=X[1500:], labels=Y[1500:])
    torch.manual_seed(0)
    net = DigitsNet()
    fit(net, Batches(torch.from_numpy(X[:900]), torch.from_numpy(Y[:900]).long()), epochs=4, lr=0.01)
    torch.save(net.state_dict(), folder / "net.pt")
    (folder / "digits_nets.py").write_text(NETS)
    (folder / "small.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *arguments):
    """The exit code and the last line of a command, which printed nothing else but progress."""
    monkeypatch.setattr("sys.argv", ["fewbits", "train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    return stopped.value.code, told.err.strip().splitlines()[-1]


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")}


def check(result):
    """What a whole run of the recipe gives."""
    report = Report.from_json(Path("small-fewbits/report.json").read_bytes())
    assert [one.name for one in report.stages] == [*STAGES, "5 export"]
    macs = [one.macs for one in report.stages]
    assert 0.4 * macs[0] < macs[1] <= 0.6 * macs[0] and len(set(macs[1:])) == 1
    sparsities = [one.sparsity for one in report.stages]
    assert [round(one, 1) for one in sparsities[:4]] == [0, 0, 0.3, 0.3]
    assert [one.error for one in report.candidates] == [None] * 5
    assert all(one.latency_ms.p50 for one in report.candidates)
    sizes = [one.size_bytes for one in report.candidates]
    assert sizes[-1] == Path("small-fewbits/digits.onnx").stat().st_size < sizes[1] < sizes[0]
    assert report.candidates[-1].metric > report.candidates[0].metric - 8
    assert "4 stages" in report.verdict and "4 qat" in str(result) and "zeros" in str(result)
    page = Path("small-fewbits/report.html").read_text()
    assert "Stages of training" in page and "3 distil" in page
    outputs = result.model(np.load("test.npz")["image"])
    assert outputs.shape == (297, 10)
    codes = [numpy_helper.to_array(one) for one in onnx.load("small-fewbits/digits.onnx").graph.initializer]
    weights = [one for one in codes if one.dtype.name in ("int4", "int8") and one.ndim > 1]
    zeros = sum(int((one == 0).sum()) for one in weights) / sum(one.size for one in weights)
    assert sparsities[4] == sparsities[5] == pytest.approx(zeros) and zeros > sparsities[3]


def test_a_run_that_fails_and_is_interrupted_ends_where_a_whole_one_does(place, monkeypatch, capsys):
    measured = []

    def measure(*arguments, **more):
        measured[:] = [short_measuring(*arguments, **more)]
        return measured[0]

    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbits.train.measure_latency", measure)
    check(train("small.toml"))
    whole = digests(Path("small-fewbits"))
    shutil.rmtree("small-fewbits")

    left, seen = unfinished(Path("small-fewbits")), []
    Path("small.toml").write_text(RECIPE.replace("lr = 5e-3", "lr = 1e30"))
    code, line = command(monkeypatch, capsys, "small.toml")
    assert code == 2 and re.fullmatch(
        r"fewbits: stage '3 distil': the loss is (nan|inf) at step \d of epoch 1; .*", line
    )
    Path("small.toml").write_text(RECIPE)

    def interrupted(at, epoch):
        def progress(stage, done, total):
            seen.append(stage)
            if stage == at and done == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr("fewbits.cli._progress", lambda: nullcontext(progress))
        assert command(monkeypatch, capsys, "small.toml") == (
            130,
            f"fewbits: interrupted; the same command goes on from {left}",
        )
        assert not Path("small-fewbits").exists()
        assert (left / epoch).is_file()

    interrupted("3 distil: epoch 2 of 2", "3-distil.checkpoint")
    interrupted("4 qat: epoch 2 of 2", "4-qat.checkpoint")
    monkeypatch.setattr("fewbits.train.measure_latency", stop)
    interrupted("measure", "4-qat.json")
    monkeypatch.setattr("fewbits.train.measure_latency", lambda *arguments, **more: measured[0])
    assert Counter(one for one in seen if one in STAGES) == {"3 distil": 2, "4 qat": 2}
    assert not any(one.startswith(("1 prune", "2 sparsify")) for one in seen)
    assert seen.count("3 distil: epoch 1 of 2") == seen.count("4 qat: epoch 1 of 2") == 15, "once each"
    train("small.toml")
    assert digests(Path("small-fewbits")) == whole and len(whole) == 5 and not left.exists()


PERCEPTRON = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
"""
GRADUALLY = """
model = "perceptrons:net"
data = "train.npz"
eval = "train.npz"
stages = [
    {kind = "prune", channels = 0.75, importance = "l2", exclude = ["2"]},
    {kind = "prune", channels = 0.75, importance = "l2", exclude = ["2"]},
    {kind = "sparsify", sparsity = 0.5, over = 2},
    {kind = "train", epochs = 2},
    {kind = "qat", epochs = 2, weight = 1.0, features = {"quantizers.relu_1" = "3"}, freeze = 0.5},
]
"""


def test_channels_go_step_by_step_weights_epoch_by_epoch_and_ranges_freeze(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("perceptrons.py").write_text(PERCEPTRON)
    Path("gradually.toml").write_text(GRADUALLY)
    np.savez("train.npz", input=np.float32(np.random.default_rng(0).normal(size=(64, 16))), labels=Y[:64] % 4)
    recipe, shares, seen = read_training_recipe(Path("gradually.toml")), [], []

    def progress(stage, done, total):
        seen.append(stage)
        if stage == "4 train: epoch 2 of 2" and not shares:
            masks = torch.load("4-train.checkpoint")["module"]
            kept = [masks[f"{one}.parametrizations.weight.0.kept"].flatten() for one in (0, 2, 4)]
            shares.append(float(torch.cat(kept).float().mean()))
            raise KeyboardInterrupt

    freeze_ranges = QatModule.freeze_ranges

    def freeze(student):
        shares.append(seen[-1])
        return freeze_ranges(student)

    def written(module, arch, data, eval, folder):
        (folder / "m.onnx").touch()
        return folder / "m.onnx", None

    monkeypatch.setattr(QatModule, "freeze_ranges", freeze)
    monkeypatch.setattr("fewbits.training.pipeline.open_source", written)  # files are not what this is about
    with pytest.raises(KeyboardInterrupt):
        run_stages(recipe, tmp_path, progress)
    assert shares == [pytest.approx(1 - 0.5 * (1 - 0.5**3), abs=0.01)], "half way to half, fast at first"
    done = run_stages(recipe, tmp_path, progress)
    assert [one.name for one in done] == ["original", "1 prune", "2 prune", "4 train", "5 qat"]
    assert [one.macs for one in done] == [576, 2 * 16 * 12 + 16 * 4, *[2 * 16 * 9 + 16 * 4] * 3]
    assert done[3].sparsity == pytest.approx(0.5, abs=0.01) and done[2].sparsity < 0.01
    assert shares[1] == "5 qat: epoch 1 of 2", "at the end of it"


def test_what_a_run_that_is_gone_on_with_depends_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("train.npz", image=X[:9], labels=Y[:9])
    net, left = torch.nn.Linear(3, 3), tmp_path
    mine = Path("mine.toml")
    mine.write_text("name = 'mine'")

    def go_on(text):
        Path("now.toml").write_text(text)
        go_on_in(left, read_training_recipe(Path("now.toml")), net)

    recipe = RECIPE.replace("w4a8", "mine.toml")
    go_on(recipe)
    (left / "1-prune.json").touch()
    for number in ("2-sparsify", "3-distil"):
        (left / f"{number}.checkpoint").touch()
    go_on(recipe.replace("test.npz", "more.npz").replace("digits.onnx", "other.onnx"))
    assert (left / "2-sparsify.checkpoint").is_file() and (left / "3-distil.checkpoint").is_file()
    go_on(recipe.replace("lr = 5e-3", "lr = 1e-3"))
    assert (left / "2-sparsify.checkpoint").is_file() and not (left / "3-distil.checkpoint").exists()
    for old, new, said in (
        ("macs = 0.6", "macs = 0.5", r"stage '1 prune', finished where stages.1 has macs = 0.6; set it back"),
        ('kind = "prune"\nmacs = 0.6', 'kind = "train"\nepochs = 1', 'stages.1 has kind = "prune"'),
        ("digits_nets:net", "digits_nets:other", "an unfinished run with another model; remove it"),
        ("eval =", "seed = 3\neval =", "another seed"),
    ):
        with pytest.raises(InputError, match=said):
            go_on(recipe.replace(old, new))
    for number in (2, 3, 4):
        (left / f"{number}-{['sparsify', 'distil', 'qat'][number - 2]}.json").touch()
    mine.write_text("name = 'another'")
    with pytest.raises(InputError, match=r"'4 qat', finished where stages.4 has another text of mine.toml"):
        go_on(recipe.replace("lr = 5e-3", "lr = 1e-3"))
    with torch.no_grad():
        net.weight[0, 0] += 1
    with pytest.raises(InputError, match="other weights in the model"):
        go_on(recipe)


def test_no_batch_is_left_with_one_sample():
    data = TrainingData(Path("train.npz"), {"x": torch.arange(65)}, None)
    batches = Batches(data, 64)
    seen = [inputs for inputs, _ in batches]
    assert len(seen) == len(batches) == 2 and {len(one) for one in seen} == {32, 33}
    assert sorted(torch.cat(seen).tolist()) == list(range(65))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": None}, "has no array 'labels', which stage '1 prune' learns from"),
        ({"labels": Y.astype(np.float32)}, "labels are float32; give classes as integers: .*"),
        (
            {"labels": Y + 1},
            "labels go from 1 to 10, but the model has 10 classes; give integers from 0 to 9",
        ),
        ({"labels": np.eye(10, dtype=np.int64)[Y]}, r"labels are \[\d+, 10\]; give classes, \[\d+\]"),
        ({"labels": Y.astype(object)}, "array 'labels' has Python objects; .*"),
        ({"image": X[:, :, :, :7]}, "digits_nets:net does not run on its samples: .*"),
        ({"image": np.where(X > 0.9, np.nan, X)}, "sample 0 has NaN or Inf in 'image'; take it out"),
        ({"image": X.astype(str)}, "array 'image' is <U32; give numbers"),
        (None, "array 'image' cannot be read .*"),
    ],
)
def test_training_data_that_is_wrong_is_one_line(place, monkeypatch, capsys, arrays, said):
    path = Path("train.npz")
    if arrays is None:
        path.write_bytes(path.read_bytes().replace(X[5].tobytes(), X[6].tobytes()))
    else:
        given = {"image": X, "labels": Y, **arrays}
        np.savez(path, **{name: array[:100] for name, array in given.items() if array is not None})
    code, line = command(monkeypatch, capsys, "small.toml")
    assert code == 2 and re.fullmatch(f"fewbits: train.npz: {said}", line), line
    assert not list(place.glob("small-fewbits*"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('net"', 'nothing"', "digits_nets:nothing: .* has no 'nothing'"),
        ('net"', 'Choosing"', "Choosing: what its forward does depends on the values of its input .*"),
        ("test.npz", "damaged.npz", r"damaged.npz: not an .npz file \(File is not a zip file\); .*"),
        ("test.npz", "other.npz", r"other.npz: array 'image' has shape \[5, 1, 8, 7\], .*"),
        ("test.npz", "wide.npz", r"wide.npz: .*"),
        ("w4a8", "w9a9", "stage '4 qat': recipe 'w9a9': not a preset and not a .toml file; .*"),
        (
            "epochs = 2",
            'epochs = 2\nprecision = "fp16"',
            "stage '3 distil': precision is 'fp16', .* take 'bf16'",
        ),
        ("epochs = 2", 'epochs = 2\nfeatures = {inner = "no"}', "stage '3 distil': .* no submodule 'no'; .*"),
    ],
)
def test_what_needs_no_training_is_said_before_any(place, monkeypatch, capsys, old, new, said):
    Path("small.toml").write_text(RECIPE.replace(old, new, 1))
    np.savez("other.npz", image=X[:5, :, :, :7], labels=Y[:5])
    np.savez("wide.npz", image=X[:5], labels=np.eye(10)[Y[:5]])
    Path("damaged.npz").write_bytes(Path("test.npz").read_bytes()[:500])
    code, line = command(monkeypatch, capsys, "small.toml")
    assert code == 2 and re.fullmatch(f"fewbits: {said}", line), line
    assert not list(place.glob("small-fewbits*"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'kind = "prune"',
            'kind = "prunes"',
            r"stages.1: Input tag 'prunes' .* expected tags: 'prune', 'sparsify'",
        ),
        ("macs = 0.6", "mac = 0.6", r"stages.1.prune.mac: Extra inputs are not permitted \(got 0.6\)"),
        ("macs = 0.6", "macs = 1.6", r"stages.1.prune.macs: .* less than or equal to 1 \(got 1.6\)"),
        ('model = "digits_nets:net"', "", "model: Field required"),
        ("epochs = 2", "", r"stages.3.distil.epochs: Field required"),
        ("macs = 0.6", "", r"stages.1.prune: give macs or params or both, or channels, or blocks alone$"),
        (
            "macs = 0.6",
            "macs = 0.6\nchannels = 0.5",
            r"stages.1.prune: give macs or params or both, or channels",
        ),
        ("sparsity = 0.3", 'sparsity = 0.3\npattern = "2:4"', r"stages.2.sparsify: give either a sparsity, "),
        (
            "sparsity = 0.3",
            'pattern = "2 of 4"',
            r"stages.2.sparsify.pattern: String should match .* '2 of 4'",
        ),
        ('kind = "distil"', 'kind = "qat"', r"stages.4: 'qat' cannot follow 'qat'; only export can"),
        ("[[stages]]", "[[stages", "not valid TOML"),
        (
            "sparsity = 0.3",
            "sparsity = 0.3\nover = 3",
            r"stages.2.sparsify.over: is 3, but there is no train or distil",
        ),
        (
            'kind = "prune"\nmacs = 0.6',
            'kind = "sparsify"\nsparsity = 0.1\nover = 1',
            r"stages.1.sparsify.over: is 1, but",
        ),
        (
            'kind = "distil"',
            'kind = "sparsify"\nsparsity=0.5\nover=1\n[[stages]]\nkind = "distil"',
            r"stages.3.sparsify.over: cannot",
        ),
        ('name = "digits.onnx"', 'name = "../digits.onnx"', r"stages.5.export.name: String should match"),
    ],
)
def test_a_recipe_that_is_wrong_is_one_line(tmp_path, old, new, said):
    path = tmp_path / "wrong.toml"
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(InputError, match=f"recipe .*wrong.toml: {said}") as caught:
        read_training_recipe(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"recipe none\.toml: cannot be read"):
        train("none.toml")
    Path("small.toml").write_text(RECIPE)
    with pytest.raises(InputError, match=r"recipe small\.toml: data: train\.npz: no such file"):
        train("small.toml")
    assert [one.name for one in tmp_path.iterdir()] == ["small.toml"]
