"""Modules in, modules out: exported, compared, compressed, and the same to call afterwards."""

import copy
import json
import sys

import numpy as np
import pytest
import torch

import fewbits as fb
from fewbits.engines.engine import EngineSettings, get
from fewbits.errors import InputError, VerificationError
from fewbits.models.torch.factory import make, with_weights
from fewbits.models.torch.structure import Structure, structure_of
from fewbits.source import open_source
from tests.models import bad_nets, nets

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


# --- what a module may be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "count", "size", "why"),
    [
        (nets.FixedBatch(), 4, 4, "takes no other number"),
        (nets.Loop(), 4, 1, "for that number only"),
        (nets.Lonely(), 2, 1, "gives other outputs"),
        (nets.SmallBatches(), 3, 1, "for that number only"),
    ],
)
def test_a_batch_that_is_not_open_is_fixed_with_a_note(tmp_path, module, count, size, why):
    data = [floats(count, 8) + number for number in range(6)]  # batches as a loader gives them
    path, origin = open_source(module, None, data, None, tmp_path)
    (note,) = origin.notes
    assert f"exported for {size} sample" in note
    assert why in note
    session = get("onnxruntime").compile(path, EngineSettings("onnxruntime", "f32", THREADS))
    with torch.no_grad():
        expected = module(torch.from_numpy(data[1][:size]))
    assert np.allclose(session.run({"x": data[1][:size]})["output"], expected.numpy(), atol=1e-5)


def test_a_fixed_batch_from_end_to_end(tmp_path, short_measuring):
    module = nets.FixedBatch().eval()
    data = [(floats(4, 8) + number, np.arange(4) % 4) for number in range(6)]
    result = fb.compress(module, data, recipe="w8", engine="onnxruntime", threads=THREADS, max_drop="100%")
    assert any("exported for 4 samples" in note for note in result.report.notes)
    assert result.report.metric.name == "top1"
    x = torch.from_numpy(data[0][0])
    assert result.model(x).shape == (4, 4)
    assert result.report.shown.agreement.cosine_min > 0.99


def test_nested_outputs_come_back_nested(tmp_path, short_measuring):
    module, data = module_and_data("lstm")
    module.eval()
    seen = []

    def evaluate(model):
        logits, (_hidden, _cell) = model(torch.from_numpy(data["x"]))
        seen.append(type(model).__name__)
        return float(logits.mean())

    out = tmp_path / "out"
    fb.compress(
        module,
        data,
        evaluate=evaluate,
        recipe="fp16",
        engine="onnxruntime",
        threads=THREADS,
        out=out,
        max_drop=9,
    )
    again = fb.load(out)
    x = torch.from_numpy(data["x"])
    expected, got = module(x), again(x=x)
    assert set(seen) == {"CompressedModule"}
    assert isinstance(got, tuple) and isinstance(got[1], tuple)
    for one, two in zip(
        torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-2)
    with pytest.raises(InputError, match="2 inputs given; the model has x"):
        again(x, x)


def test_a_dict_with_none_in_it_from_batches_of_dicts(tmp_path, short_measuring):
    module, data = module_and_data("masked encoder")
    module.eval()
    loader = [
        {key: torch.from_numpy(array[at : at + 4]) for key, array in data.items()} for at in range(0, 24, 4)
    ]
    result = fb.compress(module, loader, recipe="w8", engine="openvino", threads=THREADS, max_drop="100%")
    got, expected = result.model(loader[0]["ids"], mask=loader[0]["mask"]), module(**loader[0])
    assert list(got) == ["linear", "ids", "none"]
    assert got["none"] is None
    assert torch.nn.functional.cosine_similarity(got["linear"], expected["linear"]).min() > 0.99


def test_a_structure_survives_its_text():
    outputs = {"a": (torch.ones(1), [torch.zeros(2), None]), "b/c": torch.ones(3)}
    structure = structure_of(outputs, ("a_0",), "m")
    assert structure.tensors == ("a_0_", "a_1_0", "b_c")
    again = Structure.from_json(structure.to_json())
    assert again == structure
    back = again.put_together(again.take_apart(outputs))
    assert list(back) == ["a", "b/c"]
    assert back["a"][1][1] is None


def test_a_type_that_is_not_known_here_is_one_line():
    text = structure_of((torch.ones(1),), (), "m").to_json().replace("builtins.tuple", "my_models.Answer")
    with pytest.raises(InputError, match="import the module that defines it"):
        Structure.from_json(text)


def test_of_transformers_outputs_come_back_as_their_own_type(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    module = transformers.BertModel(config)
    ids = np.random.default_rng(0).integers(0, 50, (12, 6))
    _, origin = open_source(
        module, None, {"input_ids": ids, "attention_mask": np.ones_like(ids)}, None, tmp_path
    )
    assert origin.structure.tensors == ("last_hidden_state", "pooler_output")
    again = Structure.from_json(origin.structure.to_json())
    answer = again.put_together({name: torch.ones(1) for name in again.tensors})
    assert answer.pooler_output.shape == (1,)


# --- from the command line ---------------------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(16, 16)
        self.two = nn.Linear(16, 16)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))
"""


@pytest.fixture
def folder(place, monkeypatch):
    (place / "my_nets.py").write_text(FACTORY)
    np.savez(place / "d.npz", floats(32, 16))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield place
    sys.modules.pop("my_nets", None)


@pytest.mark.parametrize("with_file", [True, False])
def test_on_the_command_line(command, short_measuring, folder, with_file):
    from safetensors.torch import save_file

    arguments = ["my_nets:make"]
    if with_file:
        torch.manual_seed(5)
        module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        save_file(module.state_dict(), folder / "w.safetensors")
        arguments = ["w.safetensors", "--arch", "my_nets:make"]
    answer = command(
        *("compress", *arguments, "--data", "d.npz", "--recipe", "w8", "--engine", "onnxruntime"),
        *("--threads", THREADS, "--json", "--max-drop", "100%"),
    )
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["source"]["format"] == "pytorch"
    assert report["source"]["path"] == arguments[0]
    assert "original torch f32" in [one["name"] for one in report["candidates"]]
    out = folder / ("w-fewbits" if with_file else "make-fewbits")
    assert (out / ("w.onnx" if with_file else "make.onnx")).is_file()
    assert sys.path[0] != str(folder)

    model, x = fb.load(out), torch.from_numpy(floats(32, 16))
    if with_file:
        expected = module(x)
        assert torch.nn.functional.cosine_similarity(model(x), expected).min() > 0.99
    answer = command("measure", out)
    assert answer.code == 0, answer.err
    assert "PyTorch module" in answer.out


def test_tied_weights_may_be_stored_once(folder):
    from safetensors.torch import save_model

    torch.manual_seed(7)
    make("my_nets:make")
    module = sys.modules["my_nets"].Tied()
    save_model(module, str(folder / "tied.safetensors"))
    loaded = with_weights(folder / "tied.safetensors", "my_nets:Tied")
    assert loaded.two.weight is loaded.one.weight
    x = torch.ones(2, 16)
    assert torch.equal(loaded(x), module(x))


# --- bad input ---------------------------------------------------------------------------------------------------

X = {"x": floats(12, 8)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Branching", ["depends on the values", "bad_nets.py, line", "if x.sum() > 0:", "torch.where"]),
        ("Counting", ["depends on the values", "x.abs().max().item()"]),
        ("Selecting", ["size of output 0 depends on the data"]),
        ("Text", ["it gives str, not a tensor"]),
        ("Number", ["its output['scale'] is int, not a tensor"]),
        ("Nothing", ["gives no tensors"]),
        ("Dataclass", ["it gives Answer", "torch.export.register_dataclass"]),
        ("Random", ["other outputs for the same inputs"]),
        ("Stateful", ["changes its buffer 'steps'"]),
        ("Nameless", ["forward names no inputs"]),
        ("Untranslated", ["no translation of aten._linalg_svd"]),
        ("Failing", ["forward raised RuntimeError: mat1 and mat2", "x [3, 8] float32"]),
        ("with_nan", ["'layer.weight' has nan at index [2, 5]", "2 such values"]),
    ],
)
def test_a_module_that_cannot_be_compressed(capfd, name, said):
    module = getattr(bad_nets, name)()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InputError) as caught:
        fb.compress(module, X)
    line = str(caught.value)
    assert "\n" not in line
    for part in said:
        assert part in line
    out, err = capfd.readouterr()
    assert out == err == ""
    assert module.training
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(module.state_dict().values(), before.values(), strict=True)
    )


def test_an_exported_file_that_is_another_function(tmp_path):
    with pytest.raises(
        VerificationError, match=r"output 'logits' .* is not the module's.* relative distance 1,"
    ):
        open_source(bad_nets.Changing(), None, X, None, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.double(), "is float64; give module.float()"),
        (lambda m: m.bfloat16(), "is bfloat16; give module.float()"),
        (lambda m: m.to("meta"), "is on meta"),
        (lambda m: torch.jit.trace(m, torch.ones(2, 8)), "TorchScript"),
        (lambda m: m.state_dict(), "model is a OrderedDict"),
    ],
)
def test_what_is_no_float_module_on_the_cpu(change, said):
    with pytest.raises(InputError, match=said):
        fb.compress(change(bad_nets.Plain()), X)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "give samples: --data FILE"),
        ({"y": floats(8, 8)}, r"has arrays \['y'\], but forward of Plain takes \(x\)"),
        ({"x": floats(8, 8), "y": floats(8, 8)}, r"has arrays \['x', 'y'\]"),
        ([], "no samples"),
        (floats(0, 8), "no samples"),
        ([(floats(2, 8), floats(2, 8), floats(2, 8))], "a batch of 3 items"),
        (np.full((8, 8), np.nan, np.float32), "sample 0 has NaN"),
        (np.float32(3), "is a scalar"),
        ("none.npz", "no such file"),
    ],
)
def test_data_that_does_not_fit_a_module(data, said):
    with pytest.raises(InputError, match=said):
        fb.compress(bad_nets.Plain(), data)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_module:make", "no Python module 'no_such_module'"),
        ("tests.no_such:make", "no Python module 'tests.no_such'"),
        ("tests.models.bad_nets:Plane", "has no 'Plane'; near names: Plain"),
        ("tests.models.bad_nets:raising", "raised ValueError: no such size"),
        ("tests.models.bad_nets:leaving", "raised SystemExit: 3"),
        ("tests.models.bad_nets:number", "returned int; it must return an nn.Module"),
        ("tests.models.bad_nets:CONSTANT", "is a int; give a callable"),
        ("tests.models.bad_nets:with_nan", "'layer.weight' has nan"),
        ("broken:make", "importing 'broken' raised ZeroDivisionError"),
        ("my_nets:make", "give samples"),
    ],
)
def test_a_factory_that_gives_no_module(refused, folder, spec, said):
    (folder / "broken.py").write_text("1 / 0\n")
    data = () if spec == "my_nets:make" else ("--data", "d.npz")
    line = refused("compress", spec, *data)
    assert said in line
    assert spec in line


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "missing in the file: 0.weight, 0.bias, 2.weight and 1 more"),
        (
            {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (4, 32), "2.bias": (4,), "z": (1,)},
            "not in the model: z",
        ),
        (
            {"0.weight": (16, 32), "0.bias": (32,), "2.weight": (4, 32), "2.bias": (4,)},
            "0.weight is [16, 32] in the file",
        ),
    ],
)
def test_weights_of_another_model(refused, folder, tensors, said):
    from safetensors.numpy import save_file

    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, folder / "w.safetensors"
    )
    line = refused("compress", "w.safetensors", "--arch", "my_nets:make", "--data", "d.npz")
    assert "w.safetensors: its weights are not those of my_nets:make" in line
    assert said in line


def test_weights_without_an_architecture(refused, folder):
    (folder / "w.safetensors").write_bytes(b"nothing")
    assert "--arch module:factory" in refused("compress", "w.safetensors", "--data", "d.npz")
    assert "not a readable .safetensors" in refused("compress", "w.safetensors", "--arch", "my_nets:make")
    assert "no such file" in refused("compress", "none.safetensors", "--arch", "my_nets:make")
    assert "'make'" in refused("compress", "w.safetensors", "--arch", "make")
    assert "leave it out" in refused("compress", "model.onnx", "--arch", "my_nets:make")


@pytest.mark.parametrize("model", ["my_nets:make", "w.safetensors"])
def test_other_commands_take_files(refused, folder, model):
    assert "only compress takes" in refused("inspect", model)


def test_the_framework_is_no_engine_to_write_for(refused, folder):
    line = refused("compress", "my_nets:make", "--data", "d.npz", "--engine", "pytorch")
    assert "'pytorch'" in line
    assert "onnxruntime, openvino" in line
