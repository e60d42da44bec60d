"""Quantization-aware training: from a plan to a module, through training, and into a file."""

from __future__ import annotations

import copy
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fewbits.errors import InputError
from fewbits.methods.near_ties import Grid, float32_error, margin
from fewbits.methods.reconstruction import Spent
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from fewbits.training import distillation, fit, qat, qat_module, supervised
from fewbits.training.fake_quantize import TrainedStep
from tests.tiny import CONV_BN
from tests.training.nets import Residual

EXAMPLE = Path(__file__).parents[2] / "examples" / "training_digits.py"


@pytest.fixture(scope="module")
def rounded(trained):
    return qat(trained.net, "w8a8", trained.calibration)


@pytest.fixture
def student(rounded):
    return copy.deepcopy(rounded)


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_shared_values_are_trained(digits, tmp_path):
    student = qat(digits.net, "w4_codebook", digits.calibration)
    first = student.plan
    fit(student, digits.batches, epochs=1, lr=2e-3)
    path = student.export(tmp_path / "a folder" / "m.onnx")
    with torch.no_grad():
        wanted = student(digits.x).numpy()
    assert np.allclose(run(path, digits.x), wanted, atol=1e-4 * float(np.abs(wanted).max()))
    books = [
        (before.weights[0].codes.codebook, after.weights[0].codes.codebook)
        for before, after in zip(first.layers, student.plan.layers, strict=True)
        if before.weights[0].codes.codebook is not None
    ]
    assert books
    for before, after in books:
        assert len(after) <= 16
        assert not torch.equal(before, after)
    wide = student.double().export(tmp_path / "wide.onnx")
    assert wide.read_bytes() == path.read_bytes()


PER_TENSOR = Recipe("per tensor", (Rule("*", Scheme("int8"), Scheme("uint8", symmetric=False)),))


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", PER_TENSOR])
def test_the_file_computes_what_the_trained_module_computes(digits, recipe, tmp_path):
    student = qat(digits.net, recipe, digits.calibration)
    before = student.plan
    fit(student, digits.batches, epochs=2, lr=2e-3)
    path = student.export(tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = student(digits.x).numpy()
    got = run(path, digits.x)
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.999
    noise = np.square(got - wanted).sum() / np.square(wanted).sum()
    assert noise < 1e-4
    changed = [
        (a.weights[0].codes.codes != b.weights[0].codes.codes).any()
        for a, b in zip(before.layers, student.plan.layers, strict=True)
    ]
    assert all(changed)
    assert any(a.scale != b.scale for a, b in zip(before.activations, student.plan.activations, strict=True))
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def sums(path):
    """The steps of a file's sums of two quantized tensors: of the two, and of the total."""
    graph = onnx.load(path).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    read = {name: node for node in graph.node for name in node.input}

    def grid(node):
        scale, zero_point = (constants[name] for name in node.input[1:])
        return Grid(float(scale), int(zero_point), 0, 255)

    for node in graph.node:
        both = [made.get(name) for name in node.input]
        if node.op_type == "Add" and all(one and one.op_type == "DequantizeLinear" for one in both):
            after = read[node.output[0]]
            after = after if after.op_type == "QuantizeLinear" else read[after.output[0]]
            if after.op_type == "QuantizeLinear":
                yield *(grid(one) for one in both), grid(after)


def test_steps_of_sums_are_clear_of_ties(tmp_path):
    torch.manual_seed(0)
    student = qat(Residual().eval(), "w8a8", torch.randn(64, 3, 8, 8)).eval()
    path = student.export(tmp_path / "m.onnx")
    (found,) = sums(path)
    assert margin(*found) >= float32_error(*found)
    (total,) = (
        one
        for one in student.quantizers.values()
        if isinstance(one, TrainedStep) and float(one.step.detach()) == found[2].scale
    )
    total.move(2 * found[1].scale)  # every other sum with a zero lies in the middle between two codes
    assert margin(*found[:2], replace(found[2], scale=2 * found[1].scale)) < 1e-6
    (found,) = sums(student.export(path))
    assert margin(*found) >= float32_error(*found)
    x = torch.randn(1000, 3, 8, 8)
    with torch.no_grad():
        wanted = student.double()(x.double()).numpy()
    assert np.abs(run(path, x) - wanted).max(1).mean() < 1e-5


def test_biases_of_many_steps_are_rounded_as_in_the_file(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 1000))
    with torch.no_grad():
        net[0].weight.mul_(0.1)
        net[0].bias.normal_()
    x = torch.rand(64, 8)
    student = qat(net, "w8a8", x)
    with torch.no_grad():
        for name, one in student.named_parameters():
            if name.endswith("stretch"):
                one.add_(0.01 * torch.randn_like(one))
        wanted = student(x).numpy()
    path = student.export(tmp_path / "m.onnx")
    scales = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    (step,) = (value for name, value in scales.items() if "bias" in name and name.endswith("_scale"))
    assert np.abs(wanted).max() / step.min() > 1e5
    wide = copy.deepcopy(student.double())
    with torch.no_grad():
        same = wide(x.double())
    assert same.dtype == torch.float64
    for found in (wanted, same.numpy()):
        assert (np.abs(run(path, x) - found) < 0.5 * step).all()


@pytest.mark.parametrize("qtype", ["ternary", "binary"])
def test_weights_of_three_and_of_two_values_are_trained(digits, qtype, tmp_path):
    recipe = tmp_path / "few.toml"
    recipe.write_text(
        f"""
        name = "few"
        [[rules]]
        match = "*"
        weights = {{qtype = "{qtype}", per = "channel", range = "mse"}}
        activations = {{qtype = "uint8", symmetric = false}}
        """
    )
    student = qat(digits.net, str(recipe), digits.calibration).eval()
    begun = student.plan
    with torch.no_grad():
        before = float(nn.functional.cross_entropy(student(digits.x), digits.y))
    fit(student, digits.batches, epochs=3, lr=3e-3)
    path = student.export(tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = student(digits.x)
    assert nn.functional.cross_entropy(wanted, digits.y) < before / 2
    got = run(path, digits.x)
    assert (got.argmax(1) == wanted.numpy().argmax(1)).mean() >= 0.995
    values = {"ternary": {-1, 0, 1}, "binary": {-1, 1}}[qtype]
    for a, b in zip(begun.layers, student.plan.layers, strict=True):
        assert set(b.weights[0].codes.codes.unique().tolist()) <= values
        assert not torch.equal(a.weights[0].codes.codes, b.weights[0].codes.codes)
    stored = {one.data_type for one in onnx.load(path).graph.initializer if one.name.endswith("weight_codes")}
    assert stored == {onnx.TensorProto.INT4}


def test_training_brings_back_what_two_bits_cost(digits):
    few = Rule("*", Scheme("int2", per="channel", range="mse"), Scheme("uint4", symmetric=False))
    student = qat(digits.net, Recipe("throughout", (few,)), digits.calibration).eval()

    def loss(module):
        with torch.no_grad():
            return float(nn.functional.cross_entropy(module(digits.x), digits.y))

    exact, before = loss(digits.net), loss(student)
    fit(student, digits.batches, epochs=4, lr=5e-3)
    assert before > exact + 0.02
    assert loss(student) < (before + exact) / 2


def test_it_begins_where_rounding_after_training_ends(digits, student):
    student.eval()
    begun = zip(student._first.layers, student.plan.layers, strict=True)
    assert all(torch.equal(a.weights[0].codes.codes, b.weights[0].codes.codes) for a, b in begun)
    with torch.no_grad():
        difference = student(digits.x) - digits.net(digits.x)
        assert difference.square().sum() < 2e-3 * digits.net(digits.x).square().sum()
    loss = nn.functional.cross_entropy(student(digits.x), digits.y)
    loss.backward()
    missing = [name for name, value in student.named_parameters() if value.grad is None]
    assert not missing


def test_a_small_step_changes_little(digits):
    """Weights that the plan rounded away from the nearest code do not all change their codes at once."""
    student = qat(digits.net, "w4a4", digits.calibration)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-5)
    codes = [one.weights[0].codes.codes for one in student.plan.layers]
    nn.functional.cross_entropy(student(digits.x), digits.y).backward()
    optimizer.step()
    after = [one.weights[0].codes.codes for one in student.plan.layers]
    changed = sum(int((a != b).sum()) for a, b in zip(codes, after, strict=True))
    assert changed < sum(one.numel() for one in codes) / 100


def test_it_begins_with_what_was_learned_block_by_block(digits, monkeypatch):
    monkeypatch.setattr(qat_module, "SPENT", {"fast": None, "normal": Spent(60, 16)})
    x = digits.x[:256]

    def distance(student):
        with torch.no_grad():
            return float((student.eval()(x) - digits.net(x)).square().mean())

    fast, normal = (qat(digits.net, "w2a4", digits.calibration, effort=one) for one in ("fast", "normal"))
    assert distance(normal) < 0.8 * distance(fast)


def test_any_loop_trains_it(digits):
    student = qat(digits.net, "w4a8", digits.calibration)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(3):
        for x, y in digits.batches:
            loss = nn.functional.cross_entropy(student(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_steps_are_frozen_in_the_middle_of_a_run(digits, student):
    plans = [student.plan]
    freezes = [student.freeze_ranges, student.freeze_steps]

    def schedule(done):
        if freezes and done >= len(plans) / 3:
            plans.append(freezes.pop(0)().plan)

    fit(student, digits.batches, epochs=1, lr=1e-2, schedule=schedule)
    ranges = [[one.scale for one in plan.activations] for plan in (*plans, student.plan)]
    codes = [[one.weights[0].codes for one in plan.layers] for plan in (*plans, student.plan)]
    steps = [torch.cat([one.scale for one in layers]) for layers in codes]
    assert ranges[0] != ranges[1] == ranges[2] == ranges[3]
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[1], steps[2])
    assert torch.equal(steps[2], steps[3])
    assert not all(torch.equal(a.codes, b.codes) for a, b in zip(*codes[2:], strict=True))
    trained = [one.requires_grad for one in student.parameters()]
    assert set(trained) == {False, True}
    assert [one.requires_grad for one in copy.deepcopy(student).parameters()] == trained


def test_a_student_learns_features_of_its_teacher():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    net, teacher = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 6), nn.Flatten()) for _ in range(2)
    )
    student = qat(net, "w8a8", x)

    def nothing(outputs, targets):
        return 0 * outputs.sum()

    objective = distillation(teacher, weight=0.0, features={"quantizers.relu": "1"}, loss=nothing)
    done = fit(student, [(one,) for one in x.split(16)], epochs=6, lr=2e-2, objective=objective)
    assert done[-1].loss < done[0].loss / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_module_on_cuda_gives_a_student_there(digits, tmp_path):
    student = qat(digits.net.cuda(), "w8a8", digits.calibration)
    assert {one.device.type for one in (*student.parameters(), *student.buffers())} == {"cuda"}
    fit(student, digits.batches, epochs=1, objective=distillation(digits.net))
    path = student.export(tmp_path / "m.onnx")
    with torch.no_grad():
        wanted = student(digits.x.cuda()).argmax(1).cpu().numpy()
    assert (run(path, digits.x).argmax(1) == wanted).mean() >= 0.99


def test_a_copy_and_a_saved_state_are_the_same_module(digits, student):
    fit(student, digits.batches, epochs=1)
    twin = copy.deepcopy(student)
    fresh = qat(digits.net, "w8a8", digits.calibration)
    fresh.load_state_dict(student.state_dict())
    with torch.no_grad():
        wanted = student(digits.x)
        for parameter in student.parameters():
            parameter.zero_()
        assert torch.equal(twin(digits.x), wanted)
        assert torch.equal(fresh.eval()(digits.x), wanted)
    state = student.state_dict()
    for recipe, calibration in (("w8a8", digits.calibration + 1), ("w4a8", digits.calibration)):
        other = qat(digits.net, recipe, calibration)
        before = other.state_dict()
        with pytest.raises(
            InputError, match="the state came of a module, recipe or calibration data other than"
        ):
            other.load_state_dict(state)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_an_onnx_file_is_trained_too(tmp_path):
    path = CONV_BN.save(tmp_path / "m.onnx")
    samples = CONV_BN.samples(32)
    student = qat(path, "w8a8", samples)
    (name,) = samples
    x = torch.from_numpy(samples[name])
    out = student(**{name: x})
    out.square().mean().backward()
    exported = student.export(tmp_path / "out.onnx")
    assert np.allclose(run(exported, x), out.detach().numpy(), atol=0.02 * float(out.detach().abs().max()))


def test_transposed_convolutions_are_trained(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 1, 2),
    )
    x = torch.randn(64, 2, 4, 4)
    student = qat(net, "w8a8", x)
    with torch.no_grad():
        wanted = net(x) / 2
    fit(student, [(x, wanted)] * 30, epochs=1, lr=2e-2, objective=supervised(nn.functional.mse_loss))
    with torch.no_grad():
        before, after = net(x), student(x)
    assert (after - wanted).square().mean() < (before - wanted).square().mean() / 2
    got = run(student.export(tmp_path / "m.onnx"), x)
    assert np.abs(got - after.numpy()).mean() < 1e-3 * float(after.abs().max())


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    scores = [float(value) for value in re.findall(r"([\d.]+) %", capsys.readouterr().out)]
    exact, rounded, trained = scores
    assert rounded < exact
    assert trained > rounded + (exact - rounded) / 4
    assert (tmp_path / "digits.onnx").is_file()


def test_what_is_refused(digits, student, tmp_path):
    with pytest.raises(InputError, match="there is no data to calibrate with"):
        qat(digits.net, "w8a8")
    with pytest.raises(InputError, match="quantized already"):
        qat(student, "w8a8", digits.calibration)
    with pytest.raises(InputError, match="the model takes image"):
        student(digits.x, digits.x)
    mixed = copy.deepcopy(digits.net)
    mixed.last = nn.Linear(128, 10, device="meta")
    with pytest.raises(InputError, match=r"several devices \(cpu, meta\); move all of it to one"):
        qat(mixed, "w8a8", digits.calibration)
    with pytest.raises(InputError, match="effort is 'most'; allowed are fast, normal, high"):
        qat(digits.net, "w8a8", digits.calibration, effort="most")
    for recipe, more in (("fp16", {}), ("fp8", {}), ("w8a8", {"exclude": ["*"]})):
        with pytest.raises(InputError, match=f"recipe '{recipe}': leaves nothing to be trained"):
            qat(digits.net, recipe, digits.calibration, **more)
    with pytest.raises(InputError, match="cannot be trained: operator Celu of node"):
        qat(nn.Sequential(nn.Linear(8, 8), nn.CELU(0.5)), "w8a8", digits.calibration)
    with pytest.raises(InputError, match="w9a9"):
        qat(digits.net, "w9a9", digits.calibration)
    with torch.no_grad():
        student.quantizers["relu"].stretch.fill_(torch.nan)
    with pytest.raises(InputError, match=r"the loss is nan at step \d of epoch 1; .* 'quantizers\.relu'"):
        fit(student, digits.batches, epochs=1)
    with pytest.raises(InputError, match="holds NaN or infinity; nothing is written"):
        student.export(tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
