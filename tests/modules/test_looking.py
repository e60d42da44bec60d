"""A look inside: codes, scales and bytes beside the original's, and outputs side by side."""

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.numerics import quantize
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.modules.layers import Tied, ids, made


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


def test_a_weight_beside_the_original(net):
    view = fb.look(fb.quantize(net, "w4_g32"), net)["0"]
    expected = quantize(net[0].weight, "int4", channel_axis=0, group_size=32, search="mse")
    assert torch.equal(view.codes, expected.codes) and torch.equal(view.scale, expected.scale)
    assert (view.zero_point, view.channel_axis, view.group_size) == (None, 0, 32)
    assert view.scheme == "int4, symmetric, by axis 0 in groups of 32"
    assert (
        view.bytes_per_element == (64 * 32 / 2 + 64 * 4) / (64 * 32) and view.original_bytes_per_element == 4
    )
    assert view.error == expected.error(net[0].weight)


def test_zero_points_and_codebooks(net):
    small = fb.quantize(net, "w_codebook4")
    assert fb.look(small)["2.weight"].codebook.shape == (16,)
    assert fb.look(small)["2"].error is None
    asymmetric = Recipe("uint8", (Rule("*", Scheme("uint8", "channel", symmetric=False)),))
    view = fb.look(fb.quantize(net, asymmetric))["0"]
    assert view.zero_point.dtype == torch.int32 and view.zero_point.shape == view.scale.shape == (32,)
    assert view.scheme == "uint8, asymmetric, by axis 0" and view.codes.dtype == torch.uint8


def test_bytes_by_dtype_count_each_once(net):
    view = fb.look(fb.quantize(net, "w4_g32"), net)
    assert view.bytes_by_dtype == {"int4": 64 * 32 // 2 + 32 * 10 // 2, "float32": 4 * (64 + 10 + 32 + 10)}
    assert view.original_bytes == 4 * (64 * 32 + 32 + 320 + 10)
    tied = fb.look(fb.quantize(Tied(), "w8"))
    assert tied.bytes_by_dtype["int8"] == 64 * 32
    assert len(tied.weights) == 1


def test_what_is_shown(net):
    small = fb.quantize(net, "w4_g32")
    text = str(fb.look(small, net))
    for word in ("0.weight", "Linear", "int4, symmetric, by axis 0 in groups of 32", "of 9.", "dB"):
        assert word in text, text
    functional, _ = made("Functional")
    assert "in float: places: not used in a product" in str(fb.look(fb.quantize(functional, "w8")))


def test_a_weight_is_shown_with_numbers(net):
    from fewbits.looking import printed

    text = printed(fb.look(fb.quantize(net, "w8"), net)["0"])
    for word in ("codes", "stand for", "original", "scale [32]", "1.06 bytes per element, 4 before", "SQNR"):
        assert word in text, text


def test_a_weight_that_is_not_there(net):
    with pytest.raises(InputError, match=r"no coded weight '7'; there are 0.weight, 2.weight"):
        fb.look(fb.quantize(net, "w8"))["7"]
    with pytest.raises(InputError, match=r"the original has no parameter '0.weight'"):
        fb.look(fb.quantize(net, "w8"), nn.ReLU())
    with pytest.raises(InputError, match=r"the original's '0.weight' is \[8, 8\], and \[32, 64\] here"):
        fb.look(fb.quantize(net, "w8"), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))


def test_outputs_side_by_side(net):
    small = fb.quantize(net, "w2_g32")
    x = torch.randn(40, 64)
    (found,) = fb.compare_modules(net, small, [x[:20], x[20:]]).outputs
    with torch.no_grad():
        a, b = net(x), small(x)
    far, apart = (a - b).abs(), (a.softmax(1) - b.softmax(1)).abs()
    assert found.mean == pytest.approx(float(far.mean()), rel=1e-4)
    assert found.maximum == pytest.approx(float(far.max()), rel=1e-4)
    assert found.mean_probability == pytest.approx(float(apart.mean()), rel=1e-4)
    assert found.maximum_probability == pytest.approx(float(apart.max()), rel=1e-4)
    assert found.top_class == int((a.argmax(1) == b.argmax(1)).sum()) / 40 < 1
    text = str(fb.compare_modules(net, small, x))
    assert "same top class" in text and "int2" in text


def test_inputs_of_every_form():
    module = Tied()
    small = fb.quantize(module, "w8")
    x = ids(64, 2, 3)
    found = [
        fb.compare_modules(module, small, data).outputs
        for data in (x, (x,), {"ids": x}, [x], [(x,)], [{"ids": x}])
    ]
    assert all(one == found[0] for one in found)
    assert module.training and small.training
    assert fb.compare_modules(module, module, x).outputs[0].sqnr_db == float("inf")


def test_what_cannot_be_compared(net):
    with pytest.raises(InputError, match="no inputs"):
        fb.compare_modules(net, net, [])
    with pytest.raises(InputError, match="data is a int"):
        fb.compare_modules(net, net, 3)
    with pytest.raises(InputError, match="outputs that cannot be compared"):
        fb.compare_modules(nn.Identity(), nn.Flatten(), [ids(3, 2, 2)])
