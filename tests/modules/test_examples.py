"""The examples of modules run, and say what they promise."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEWBITS_DATA") or ROOT.parent / "shared" / "data")
SAYS = {
    "half_linear": ("8320 bytes", "4160 bytes", "same top class"),
    "static_cnn": ("head: activations from 0.000 to 1.000", "int8, symmetric, by axis 0", "same top class"),
    "mnist": ("fp32: 9", "w_ternary", "mean error"),
    "mobilevit": ("22.36 MB in fp32, 11.18 MB in bf16", "same top class"),
    "flan_t5": ("fp32: 242 MB", "w4_g128: 40 MB", "loaded again: 40 MB"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of several tests at once wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SAYS)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    if name == "mnist" and not list(DATA.glob("mnist_t10k*")):
        pytest.skip("MNIST's test images are not in ../shared/data nor in the folder FEWBITS_DATA names")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, str(DATA)])
    runpy.run_path(str(ROOT / "examples" / f"modules_{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in text, text
