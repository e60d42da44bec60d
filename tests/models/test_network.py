"""A folded graph in torch: what it computes, and where it is cut."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fewbits.engines.engine import literal_session
from fewbits.models.model import open_model
from fewbits.models.network import UnsupportedError
from tests.models.cifar import images, resnet20
from tests.tiny import ATTENTION, CONV_BN, EMBEDDING, Tiny, linear

RESIDUAL = Tiny(
    """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, w2)
        s = Add (c, a)
        d = Relu (s)
        y = Conv (d, w3)
    }""",
    {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1)},
    {"x": ((4, 6, 6), None)},
)


def blocks(model):
    network = model.network()
    return network.blocks([layer.node for layer in model.info.layers if layer.weights])


def same_as_the_engine(path: Path, feeds) -> None:
    model = open_model(path)
    network = model.network()
    got = network.run({name: torch.from_numpy(array) for name, array in feeds.items()}, network.outputs, {})
    for name, expected in literal_session(path, 1).run(feeds).items():
        np.testing.assert_allclose(got[name].numpy(), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("tiny", [linear(), CONV_BN, RESIDUAL], ids=["linear", "conv", "residual"])
def test_it_computes_what_the_engine_does(tiny, tmp_path):
    same_as_the_engine(tiny.save(tmp_path / "m.onnx"), tiny.samples(5))


@pytest.mark.parametrize("tiny", [CONV_BN, ATTENTION, EMBEDDING])
def test_constants_follow_the_inputs_to_another_device(tiny, tmp_path):
    model = open_model(tiny.save(tmp_path / "m.onnx"))
    network = model.network()
    feeds = {name: torch.from_numpy(array) for name, array in tiny.samples(3).items()}
    wanted = network.run(feeds, network.outputs, {})
    got = network.run({name: one.to("meta") for name, one in feeds.items()}, network.outputs, {})
    assert {name: (one.device.type, one.shape) for name, one in got.items()} == {
        name: ("meta", one.shape) for name, one in wanted.items()
    }


def test_resnet20(shared_data, tmp_path):
    weights = shared_data / "resnet20_cifar10.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    path = resnet20(weights, tmp_path / "resnet20.onnx")
    x, _ = images(shared_data / "cifar10_jpeg_train10k.npz", 0, 8)
    same_as_the_engine(path, {"x": x})
    found = blocks(open_model(path))
    assert [len(one.layers) for one in found] == [1, *[2] * 9, 1]
    assert [one.begin for one in found[1:]] == [one.end[0] for one in found[:-1]]
    assert found[-1].end == ("logits",)


def test_a_shortcut_and_what_it_goes_around_are_one_block(tmp_path):
    model = open_model(RESIDUAL.save(tmp_path / "m.onnx"))
    first, second, third = blocks(model)
    assert [(one.begin, one.end, len(one.layers)) for one in (first, second, third)] == [
        (None, ("a",), 1),
        ("a", ("d",), 1),
        ("d", ("y",), 1),
    ]
    assert len(second.nodes) == 4


def test_without_layers_there_are_no_blocks(tmp_path):
    model = open_model(RESIDUAL.save(tmp_path / "m.onnx"))
    assert model.network().blocks([]) == ()


def test_what_stands_before_a_place_is_called_once_for_all_readers(tmp_path):
    model = open_model(RESIDUAL.save(tmp_path / "m.onnx"))
    network = model.network()
    calls = []

    def twice(tensor):
        calls.append(1)
        return 2 * tensor

    def minus(tensor):
        return -tensor

    relu, add = (
        next(node.name for node in model.folded.graph if node.op_type == op) for op in ("Relu", "Add")
    )
    x = torch.from_numpy(RESIDUAL.samples(2)["x"])
    plain = network.run({"x": x}, ["a", "s"], {})
    got = network.run({"x": x}, ["a", "s"], {(relu, 0): twice, (add, 1): twice, (add, 0): minus})
    assert torch.equal(got["a"], plain["a"])
    conv = network.run({"b": (2 * got["a"]).relu()}, ["c"], {})["c"]
    torch.testing.assert_close(got["s"], 2 * got["a"] - conv)
    assert len(calls) == 1


def test_gradients_reach_weights(tmp_path):
    model = open_model(CONV_BN.save(tmp_path / "m.onnx"))
    network = model.network()
    layer = model.info.layers[0]
    weight = torch.from_numpy(model.weight(layer.weights[0].name)).requires_grad_()
    reads = {network.place(layer.node, layer.weights[0].name): lambda tensor: weight}
    x = torch.from_numpy(CONV_BN.samples(2)["image"])
    network.run({"image": x}, ["logits"], reads)["logits"].square().sum().backward()
    assert weight.grad.abs().sum() > 0


def test_biases_are_found_behind_the_product(tmp_path):
    tiny = Tiny(
        "g (float[N, 5, 24] x) => (float[N, 5, 24] y) { a = MatMul (x, w)  b = Add (a, c)  y = Relu (b) }",
        {"w": (24, 24), "c": (24,)},
        {"x": ((5, 24), None)},
    )
    model = open_model(tiny.save(tmp_path / "m.onnx"))
    first = model.info.layers[0]
    node, index = model.network().place(first.node, first.bias)
    assert next(one for one in model.folded.graph if one.name == node).op_type == "Add"
    assert index == 1


def test_an_unknown_operator_is_named_only_where_it_is_needed(tmp_path):
    tiny = Tiny(
        "g (float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, w)  y = Celu (a) }",
        {"w": (4, 4)},
        {"x": ((4,), None)},
    )
    onnx.save(tiny.proto(), tmp_path / "m.onnx")
    network = open_model(tmp_path / "m.onnx").network()
    x = torch.ones(2, 4)
    assert network.run({"x": x}, ["a"], {})["a"].shape == (2, 4)
    with pytest.raises(UnsupportedError, match="operator Celu"):
        network.run({"x": x}, ["y"], {})
