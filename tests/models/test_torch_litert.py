"""PyTorch modules to TensorFlow Lite, through LiteRT's converter, which needs packages of its own."""

import importlib.util

import numpy as np
import pytest
import torch

import fewbits as fb
from fewbits.errors import InputError
from tests.models import nets

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'fewbits[tflite]'")
CONVERTER = importlib.util.find_spec("litert_torch") is not None
needs_converter = pytest.mark.skipif(
    not CONVERTER, reason="needs litert-torch: pip install 'fewbits[torch-tflite]' (make test-torch-tflite)"
)


def images(count=24):
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)


@pytest.mark.skipif(CONVERTER, reason="litert-torch is installed")
def test_without_the_converter_it_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"litert-torch, not installed here; run: pip install 'fewbits\[torch-"
    ):
        fb.compress(nets.Cnn(), images(), format="tflite", out=tmp_path / "o")


@needs_converter
def test_a_module_comes_out_as_full_integer(tmp_path, short_measuring):
    torch.manual_seed(0)
    module = nets.Cnn().eval()
    result = fb.compress(
        module,
        {"image": images()},
        format="tflite",
        recipe="w8a8",
        max_drop="100%",
        prefer="size",
        out=tmp_path / "o",
    )
    (written,) = (tmp_path / "o").glob("*.tflite")
    assert written.name == "Cnn.tflite"
    assert result.report.bytes_by_dtype.keys() <= {"int8", "int32", "int64"}
    with torch.no_grad():
        expected, got = module(torch.from_numpy(images()[:1])), result.model(torch.from_numpy(images()[:1]))
    for one, other in zip(
        torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(got), strict=True
    ):
        assert np.corrcoef(one.numpy().ravel(), other.numpy().ravel())[0, 1] > 0.98


@needs_converter
def test_what_it_cannot_convert_is_one_line(tmp_path):
    class Inverse(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(InputError, match=r"Inverse: (cannot be converted|the converter)"):
        fb.compress(
            Inverse(), np.eye(4, dtype=np.float32)[None].repeat(8, 0), format="tflite", out=tmp_path / "o"
        )
    assert not (tmp_path / "o").exists()
