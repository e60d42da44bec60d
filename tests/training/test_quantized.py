"""What is quantized already is refused in one line, whatever it came of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.training import keep_zeros, prune, prune_channels, qat

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def student():
    return qat(net(), "w8a8", X.numpy())


@pytest.mark.parametrize(
    "refuse",
    [
        lambda one: prune(one, 0.5),
        keep_zeros,
        lambda one: prune_channels(one, X, macs=0.5),
        lambda one: qat(one, "w8a8", X.numpy()),
    ],
)
def test_modules_of_codes(refuse, student, capfd):
    for module, said in (
        (fb.quantize(net(), "w8"), "0.weight is int8"),
        (nn.Sequential(nn.Linear(8, 8), fb.quantize(net(), "w4_g8")), "1.0.weight is int4"),
        (student, "it came from qat"),
    ):
        with pytest.raises(
            InputError, match=f"the module is quantized already: {said}.* give the float module"
        ) as caught:
            refuse(module)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_cannot_be_exported_is_one_line(capfd):
    class Choosing(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(
        InputError, match=r"Choosing cannot be exported, which finding its channels needs: .*"
    ) as caught:
        prune_channels(Choosing(8, 8), X, macs=0.5)
    assert "\n" not in str(caught.value) and "graph" not in capfd.readouterr().err


def test_a_file_of_codes(student, tmp_path):
    path = student.export(tmp_path / "m.onnx")
    with pytest.raises(
        InputError, match=r"quantized already \(layers in integer codes: 2\) .* give the float model"
    ):
        qat(path, "w8a8", X.numpy())
