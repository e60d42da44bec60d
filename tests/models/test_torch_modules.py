"""Modules in, modules out: exported, compared, compressed, and the same to call afterwards."""

import copy

import numpy as np
import pytest
import torch

import fewbits as fb
from fewbits.engines.engine import EngineSettings, get
from fewbits.source import open_source
from tests.models import nets

THREADS = 1


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def tensors(feeds):
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def module_and_data(name):
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 100, (24, 7))
    return {
        "cnn": lambda: (nets.Cnn(), {"image": floats(24, 3, 16, 16)}),
        "lstm": lambda: (nets.Recurrent(), {"x": floats(24, 12, 8)}),
        "gru": lambda: (nets.Recurrent(torch.nn.GRU), {"x": floats(24, 12, 8)}),
        "encoder": lambda: (nets.Encoder(), {"ids": ids}),
        "masked encoder": lambda: (nets.Encoder(), {"ids": ids, "mask": np.int64(ids % 5 > 0)}),
        "two inputs": lambda: (nets.TwoInputs(), {"weight": floats(24, 6), "bias": floats(24, 4)}),
        "sequential": lambda: (torch.nn.Sequential(torch.nn.Linear(6, 3)), {"input": floats(24, 6)}),
    }[name]()


MODULES = ("cnn", "lstm", "gru", "encoder", "masked encoder", "two inputs", "sequential")


@pytest.mark.parametrize("name", MODULES)
def test_the_exported_file_and_program_are_the_module(tmp_path, name):
    module, data = module_and_data(name)
    path, origin = open_source(module, None, data, None, tmp_path)
    assert origin.notes == ()
    onnx = get("onnxruntime").compile(path, EngineSettings("onnxruntime", "f32", THREADS))
    program = get("pytorch").compile(origin.program, EngineSettings("pytorch", "f32", THREADS))
    assert onnx.input_names == program.input_names == tuple(data)
    assert onnx.output_names == origin.structure.tensors
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for count in (1, 2, 7):
        feeds = {key: array[:count] for key, array in data.items()}
        with torch.no_grad():
            expected = origin.structure.take_apart(module(**tensors(feeds)))
        for session in (onnx, program):
            for one, two in zip(session.run(feeds).values(), expected.values(), strict=True):
                assert np.allclose(one, two.numpy(), atol=1e-5)
    torch.backends.mha.set_fastpath_enabled(True)


def test_a_module_in_and_a_module_out(tmp_path, short_measuring):
    module, data = module_and_data("cnn")
    module.train()
    module.body[1].eval()
    before = copy.deepcopy(module.state_dict())
    result = fb.compress(module, data["image"], threads=THREADS, out=tmp_path / "out", max_drop="100%")

    assert module.training and not module.body[1].training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())

    module.eval()
    x = torch.from_numpy(data["image"][:5])
    for again in (result.model, fb.load(tmp_path / "out")):
        assert isinstance(again, torch.nn.Module)
        y = again(x)
        assert isinstance(y, torch.Tensor)
        assert torch.nn.functional.cosine_similarity(y, module(x)).min() > 0.98
        assert torch.equal(y, again(image=x))

    by_name = {one.name: one for one in result.report.candidates}
    source = by_name["original torch f32"]
    assert source.error is None and source.original and source.engine == "pytorch"
    assert source.speedup_vs_source == 1
    assert by_name["original ort f32"].speedup_vs_source == pytest.approx(1 / source.speedup, rel=0.5)
    assert result.report.shown.engine != "pytorch"
    assert result.report.reference != source.name
    assert result.report.source.format == "pytorch"
    assert result.report.source.path == "Cnn"
    assert (tmp_path / "out" / "Cnn.onnx").is_file()
