"""Weights that are zero stay zero: through training, files, rounding and export."""

from __future__ import annotations

import copy

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fewbits.errors import InputError
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from fewbits.training import fit, keep_zeros, prune, qat

INNER = ["inner", "last"]  # the first layer has one input channel: no 2:4


def zeros(net):
    return {name: (getattr(net, name).weight == 0) for name in INNER}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in INNER)


def test_half_of_a_net_is_enough_for_digits(digits):
    exact = digits.accuracy(digits.net)
    masks = prune(digits.net, 0.5, over=(0.0, 0.5))
    seen = []

    def schedule(done):
        masks(done)
        seen.append(masks.sparsity)

    fit(digits.net, digits.batches, epochs=3, lr=5e-3, schedule=schedule)
    assert seen[0] == 0 and seen == sorted(seen) and len(set(seen)) > 10
    assert seen[len(seen) // 2] == pytest.approx(0.5, abs=0.02)
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    for name in ("first", *INNER):
        assert float((getattr(digits.net, name).weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert digits.accuracy(digits.net) > exact - 3


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_zeros_stay_whatever_trains_them(digits, optimizer):
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    masks = prune(digits.net, pattern="2:4", exclude=["first"])
    before = zeros(digits.net)
    trained = optimizer(digits.net.parameters(), lr=0.01, weight_decay=0.01, **options)
    fit(digits.net, digits.batches, epochs=1, optimizer=trained)
    assert same(zeros(digits.net), before)
    masks.bake()
    assert same(zeros(digits.net), before) and masks.sparsity == 0.5
    rows = before["inner"].movedim(1, -1).reshape(-1, 4)
    assert bool((rows.sum(1) == 2).all())
    assert type(digits.net.inner) is nn.Conv2d
    keep_zeros(digits.net)
    fit(digits.net, digits.batches, epochs=1)
    assert same(zeros(digits.net), before)


def test_a_pattern_grows_by_one_of_its_neighbours_after_the_other(digits):
    masks = prune(digits.net, pattern="2:4", exclude=["first"], over=(0.0, 0.5))
    seen, before = [], zeros(digits.net)
    for done in (0, 0.1, 0.2, 0.5, 1):
        masks(done)
        after = zeros(digits.net)
        assert all(bool((after[name] >= before[name]).all()) for name in INNER)
        before = after
        seen.append(masks.sparsity)
    assert seen == [0, 0, 0.25, 0.5, 0.5]


def test_weights_of_two_layers_are_left_alone_where_they_were_excluded():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with torch.no_grad():
        net[0].weight[0, 0] = 0
    prune(net, 0.5, exclude=["[01]"]).bake()
    assert keep_zeros(net).sparsity == 0.5
    assert [type(one) is nn.Linear for one in net] == [True, True, False]


def test_masks_are_saved_loaded_and_copied(digits, tmp_path):
    fresh = copy.deepcopy(digits.net)
    prune(digits.net, 0.6, across="model")
    before = zeros(digits.net)
    torch.save(digits.net.state_dict(), tmp_path / "net.pt")
    prune(fresh, 0.1)
    fresh.load_state_dict(torch.load(tmp_path / "net.pt"))
    for net in (fresh, copy.deepcopy(digits.net)):
        fit(net, digits.batches, epochs=1)
        assert same(zeros(net), before)


def test_an_interrupted_schedule_ends_where_it_would_have_ended(digits, tmp_path):
    def run(net, **more):
        fit(net, digits.batches, epochs=3, schedule=prune(net, 0.8, over=(0.1, 0.9)), **more)
        return net.state_dict()

    def interrupt(stage, done, total):
        if stage == "epoch 3 of 3":
            raise KeyboardInterrupt

    wanted = run(copy.deepcopy(digits.net))
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(digits.net), checkpoint=path, progress=interrupt)
    got = run(copy.deepcopy(digits.net), checkpoint=path)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def weights(path, x):
    """What layers of a file multiply by."""
    model = onnx.load(path)
    read = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in read)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(read, {session.get_inputs()[0].name: x.numpy()})


def throughout(qtype):
    """A recipe for every layer."""
    weights = Scheme(qtype, per="channel", range="mse")
    return Recipe(qtype, (Rule("*", weights, Scheme("uint8", symmetric=False)),))


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4", "w4_codebook", throughout("ternary")])
def test_zeros_are_zeros_in_the_file(digits, recipe, tmp_path):
    prune(digits.net, 0.6)
    before = zeros(digits.net)
    student = qat(digits.net, recipe, digits.calibration)
    fit(student, digits.batches, epochs=1, lr=5e-3)
    _, *found = weights(student.export(tmp_path / "m.onnx"), digits.x[:1])
    for name, values in zip(INNER, found, strict=True):
        expected = before[name].numpy()
        values = values if values.shape == expected.shape else values.T
        assert bool((values[expected] == 0).all())
        assert float((values == 0).mean()) < 0.85


def test_binary_weights_do_not_undo_pruning(digits):
    prune(digits.net, 0.6)
    with pytest.raises(InputError, match=r"layer 'first.*': .* binary ones have no zero; take 'ternary'"):
        qat(digits.net, throughout("binary"), digits.calibration)


def test_what_is_refused(digits):
    def refused(said, *arguments, module=digits.net, **more):
        with pytest.raises(InputError, match=said):
            prune(module, *arguments, **more)

    refused("either a sparsity")
    refused("either a sparsity", 0.5, pattern="2:4")
    refused("sparsity is -1", -1)
    refused("of every M neighbours N stay", pattern="4:4")
    refused(r"over is \(0.5, 0.2\)", 0.5, over=(0.5, 0.2))
    refused("2:4 does not fit layers whose inputs are no multiple of 4: first", pattern="2:4")
    refused("pattern is 'two of four'", pattern="two of four")
    refused("'middle' matches no layer; there are first, inner, last", 0.5, exclude=["middle"])
    refused("no linear or convolutional layer in ReLU", 0.5, module=nn.ReLU())
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    refused("layer '0': its weight is another layer's too", 0.5, module=tied)
    with pytest.raises(InputError, match="prune it first"):
        keep_zeros(digits.net)
    refused("with 0.999 of the weights .* of layer 'first'", 0.999)
    small = copy.deepcopy(digits.net)
    with torch.no_grad():
        small.first.weight.mul_(1e-4)
    said = r"with 0.7 of the weights at zero nothing is left of layer 'first' \(it has 72\); leave it out"
    for over in (None, (0, 0.5)):
        refused(said, 0.7, module=small, across="model", over=over)
    assert not small.state_dict().keys() - digits.net.state_dict().keys(), "no layer was touched"
    masks = prune(digits.net, 0.7, across="model", over=(0, 0.5))
    with torch.no_grad():
        digits.net.first.parametrizations.weight.original.mul_(1e-4)
    masks(0)
    with pytest.raises(InputError, match=said):
        masks(0.5)
    masks.bake()
    prune(digits.net, 0.5)
    refused("layer 'first': its weight is parametrized already", 0.5)
