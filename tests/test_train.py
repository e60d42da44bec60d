"""`fewbits train`: stages from a recipe, interrupted and gone on with, in one report."""

from __future__ import annotations

import functools
import json
import re
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

NETS = """
import torch
from torch import nn
from tests.training.conftest import DigitsNet

def net():
    module = DigitsNet()
    module.load_state_dict(torch.load("net.pt"))
    return module.eval()
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
recipe = "w8a8"
epochs = 1
lr = 1e-4

[[stages]]
kind = "export"
name = "digits.onnx"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a trained net, data, and a recipe, and that folder as the current one."""
    from fewbits.training import fit
    from tests.training.conftest import Batches, DigitsNet

    arrays = load_digits()
    x, y = arrays.images[:, None].astype(np.float32) / 16, arrays.target.astype(np.int64)
    np.savez(tmp_path / "train.npz", image=x[:900], labels=y[:900])
    np.savez(tmp_path / "test.npz", image=x[1500:], labels=y[1500:])
    torch.manual_seed(0)
    net = DigitsNet()
    fit(net, Batches(torch.from_numpy(x[:900]), torch.from_numpy(y[:900])), epochs=4, lr=0.01)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    (tmp_path / "digits_nets.py").write_text(NETS)
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stages_from_a_recipe_interrupted_and_gone_on_with(place, monkeypatch, capsys):
    short = functools.partial(measure_latency, rounds=2, block_seconds=0.005)
    monkeypatch.setattr("fewbits.train.measure_latency", short)

    def interrupt(stage, done, total):
        if stage.startswith("3 distil: epoch 2") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("small.toml", progress=interrupt)
    left = unfinished(Path("small-fewbits"))
    assert not Path("small-fewbits").exists()
    assert {one.name for one in left.glob("*.json")} == {
        "original.json",
        "1-prune.json",
        "2-sparsify.json",
        "run.json",
    }
    assert (left / "3-distil.checkpoint").is_file()
    before = (left / "1-prune.onnx").stat().st_mtime_ns

    seen = []
    result = train("small.toml", progress=lambda stage, done, total: seen.append(stage))
    stages = set(seen)
    assert not any(one.startswith(("1 prune", "2 sparsify")) for one in stages)
    assert "3 distil: epoch 2 of 2" in stages and "3 distil: epoch 1 of 2" not in stages
    assert not left.exists() and before

    report = Report.from_json(Path("small-fewbits/report.json").read_bytes())
    assert [one.name for one in report.stages] == [
        "original",
        "1 prune",
        "2 sparsify",
        "3 distil",
        "4 qat",
        "5 export",
    ]
    macs = [one.macs for one in report.stages]
    assert 0.4 * macs[0] < macs[1] <= 0.6 * macs[0] and len(set(macs[1:])) == 1
    assert [round(one.sparsity, 1) for one in report.stages] == [0, 0, 0.3, 0.3, 0.3, 0.3]
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
    largest = max((one for one in codes if one.dtype == np.int8), key=np.size)
    assert (largest == 0).mean() > 0.25

    (place / "small.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 1").replace("0.3", "0.2"))
    left.mkdir()
    (left / "run.json").write_text(json.dumps({"recipe": "another"}))
    with pytest.raises(
        InputError, match=r"unfinished: holds an unfinished run of another recipe or other data"
    ):
        train("small.toml")
    (place / "small.toml").write_text(RECIPE.replace('net"', 'nothing"'))
    monkeypatch.setattr("sys.argv", ["fewbits", "train", "small.toml", "--out", "other"])
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr()
    assert (stopped.value.code, told.out) == (2, "")
    assert re.fullmatch(r"fewbits: digits_nets:nothing: .* has no 'nothing'", told.err.strip())
    assert not list(place.glob("other*"))


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
        ('kind = "distil"', 'kind = "qat"', r"stages.4: 'qat' cannot follow 'qat'; only export can"),
        ("[[stages]]", "[[stages", "not valid TOML"),
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
