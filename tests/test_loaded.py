"""The saved model as a callable."""

import numpy as np
import pytest

from fewbits.engines.engine import EngineSettings
from fewbits.errors import InputError
from fewbits.loaded import LoadedModel
from tests.tiny import MODELS, linear


@pytest.fixture(params=["onnxruntime", "openvino"])
def settings(request):
    return EngineSettings(request.param, "f32", 1)


def test_inputs_in_order_by_name_and_as_a_mapping(tmp_path, settings):
    model = LoadedModel(MODELS["several"].save(tmp_path / "m.onnx"), settings)
    feeds = MODELS["several"].samples(4)
    x, row = feeds["x"], feeds["row"]
    answers = [model(x, row), model(x, row=row), model(row=row, x=x), model(feeds), model({"x": x}, row=row)]
    for answer in answers:
        assert [one.shape for one in answer] == [(4, 32), (4,), (4, 32)]
        assert all(np.array_equal(one, first) for one, first in zip(answer, answers[0], strict=True))


def test_a_single_output_comes_alone_and_tensors_go_in(tmp_path, settings):
    import torch

    tiny = linear()
    model = LoadedModel(tiny.save(tmp_path / "m.onnx"), settings)
    x = tiny.samples(3)["x"]
    y = model(torch.from_numpy(x).requires_grad_())
    assert isinstance(y, np.ndarray)
    assert y.shape == (3, 10)
    assert np.array_equal(y, model(x))


@pytest.mark.parametrize("arrays", [(), (1, 2), (np.zeros((1, 64)),)])
def test_other_inputs_are_refused(tmp_path, settings, arrays):
    model = LoadedModel(linear().save(tmp_path / "m.onnx"), settings)
    with pytest.raises(InputError, match=r"m\.onnx"):
        model(*arrays)


@pytest.mark.parametrize(("threads", "said"), [(1, "1 thread>"), (2, "2 threads>")])
def test_threads_in_words(tmp_path, threads, said):
    path = linear().save(tmp_path / "m.onnx")
    assert repr(LoadedModel(path, EngineSettings("onnxruntime", "f32", threads))).endswith(said)
