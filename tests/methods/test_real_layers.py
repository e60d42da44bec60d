"""Every method on layers of real models: how many dB it gains on samples that it has not seen."""

from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from fewbits.methods.awq import find_protection
from fewbits.methods.bias_correction import analytic_shift, empirical_shift, mean_of_clipped
from fewbits.methods.codebook import with_weighted_codebook
from fewbits.methods.equalization import grouped
from fewbits.methods.gptq import damped_moment, find_floor, round_with_compensation
from fewbits.methods.patches import patches
from fewbits.methods.smooth_quant import fake_quantize, find_smoothing
from fewbits.models.model import open_model
from fewbits.numerics import quantize
from fewbits.numerics.search import HalfQuadratic
from fewbits.planning.model_info import LayerInfo
from fewbits.threads import one_torch_thread
from tests.models.cifar import images, resnet20

CONVS = ("layer2.1.conv1", "layer3.2.conv1")
CLIPPED = ("layer2.2.conv1", "layer3.2.conv1")
BEHIND_A_NORM = ("layer1.0.conv2", "layer2.0.conv2")
WEIGHTED = ("layer1.1.conv1", "layer3.2.conv2")
IMAGES = 48
FILES = 64


@dataclass(frozen=True)
class Real:
    """A layer: its weight [outputs, inputs], and what it reads, rows of one half of the samples and of the other."""

    info: LayerInfo
    weight: torch.Tensor
    seen: torch.Tensor
    unseen: torch.Tensor

    def db(self, rounded, x=None, shift=0.0):
        """How close the layer's output is on what was not seen: with that weight, reading ``x``, and a shift."""
        exact = self.unseen @ self.weight.T
        got = (self.unseen if x is None else x) @ rounded.T + shift
        return float(10 * torch.log10(exact.square().sum() / (got - exact).square().sum()))


def file(folder, name):
    if not (folder / name).is_file():
        pytest.skip(f"{folder / name} is not there")
    return folder / name


@pytest.fixture(scope="module")
def convolutions(shared_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet20") / "m.onnx"
    model = open_model(resnet20(file(shared_data, "resnet20_cifar10.safetensors"), path))
    x, _ = images(file(shared_data, "cifar10_jpeg_train10k.npz"), 0, IMAGES)
    used = CONVS + CLIPPED + BEHIND_A_NORM + WEIGHTED
    layers = {one.name: one for one in model.info.layers if one.name in used}
    with one_torch_thread(), torch.no_grad():
        reads = model.network().run(
            {"x": torch.from_numpy(x)}, [one.inputs[0] for one in layers.values()], {}
        )
    found = {}
    for name, info in layers.items():
        weight, read = torch.from_numpy(model.weight(info.weights[0].name)), reads[info.inputs[0]]
        halves = (patches(read[part::2], weight.shape[2:], info.geometry)[0] for part in (0, 1))
        found[name] = Real(info, weight.flatten(1), *halves)
    return found


@pytest.fixture(scope="module")
def dense(shared_data, tmp_path_factory):
    """Magika's first, which reads bytes, each as a one among zeros."""
    model = open_model(file(shared_data, "magika_v3_3.onnx"))
    with np.load(file(shared_data, "magika_labelled_files.npz")) as arrays:
        given = arrays["bytes"][:FILES]
    info = next(one for one in model.info.layers if "Dense_0" in one.name)
    path = tmp_path_factory.mktemp("magika") / "m.onnx"
    model.tapped([info.inputs[0]], path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (read,) = session.run([info.inputs[0]], {model.info.inputs[0].name: given})
    rows = torch.from_numpy(read.reshape(FILES, -1, read.shape[-1])[:, ::17].astype(np.float32))
    weight = torch.from_numpy(model.weight(info.weights[0].name)).T.contiguous()
    return Real(info, weight, rows[::2].flatten(0, 1), rows[1::2].flatten(0, 1))


def nearest(weight, bits, **settings):
    """Codes of a weight with one step per output; the range of least squared error unless told otherwise."""
    given = {"channel_axis": 0, "search": "mse", "qmin": -(1 << bits - 1), **settings}
    return quantize(weight, f"int{bits}", **given)


@pytest.mark.parametrize("name", CONVS)
def test_compensation(convolutions, name):
    layer = convolutions[name]
    plain = nearest(layer.weight, 4)
    low, high, scale = plain.qtype.qmin, plain.qtype.qmax, plain.scale[:, None]
    floor = find_floor(layer.weight, layer.seen, scale, (low, high), 0.0, False)
    moment = damped_moment(layer.seen, 0.0, False, floor)
    rounded = round_with_compensation(layer.weight, moment, scale, low, high) * scale
    assert layer.db(rounded) > layer.db(plain.dequantize()) + 2.5


@pytest.mark.parametrize("name", CONVS)
def test_biases_corrected_with_data(convolutions, name):
    layer = convolutions[name]
    rounded = nearest(layer.weight, 4).dequantize()
    shift = empirical_shift(layer.seen @ layer.weight.T, layer.seen @ rounded.T, 1)
    assert layer.db(rounded, shift=shift) > layer.db(rounded) + 1


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping(convolutions, name):
    layer = convolutions[name]
    clipped, whole = (nearest(layer.weight, 2, search=kind).dequantize() for kind in ("mse", "minmax"))
    assert layer.db(clipped) > layer.db(whole) + 2.5


@pytest.mark.parametrize("name", CONVS)
def test_half_quadratic(convolutions, name):
    layer = convolutions[name]
    free = nearest(layer.weight, 4, symmetric=False, search="half_quadratic").dequantize()
    assert layer.db(free) > layer.db(nearest(layer.weight, 4, search="minmax").dequantize()) + 1


@pytest.mark.parametrize(("bits", "size"), [(2, None), (3, None), (4, 16)])
def test_half_quadratic_splitting_lowers_the_norm_that_it_is_for(convolutions, bits, size):
    """By a twentieth of what it starts from: the same steps with zero between codes."""
    weight, splitting = convolutions["layer1.1.conv1"].weight, HalfQuadratic()
    starts, ends = (
        nearest(
            weight, bits, group_size=size, symmetric=False, search=replace(splitting, iterations=count)
        ).dequantize()
        for count in (1, splitting.iterations)
    )
    norms = [float((one - weight).abs().pow(splitting.norm).sum()) for one in (starts, ends)]
    assert norms[1] < 0.95 * norms[0]


@pytest.mark.parametrize("name", CONVS)
def test_a_codebook(convolutions, name):
    layer = convolutions[name]
    even, book = (quantize(layer.weight, kind, search="mse").dequantize() for kind in ("int4", "codebook4"))
    assert layer.db(book) > layer.db(even) + 1.5


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_codebook(convolutions, name):
    layer = convolutions[name]
    plain = quantize(layer.weight, "codebook4", search="mse")
    weighted = with_weighted_codebook(plain, layer.weight, layer.seen.square().mean(0))
    assert layer.db(weighted.dequantize()) > layer.db(plain.dequantize()) + 0.7


@pytest.mark.parametrize("name", BEHIND_A_NORM)
def test_a_batch_norm_is_enough_for_biases(convolutions, name):
    layer = convolutions[name]
    rounded, like = nearest(layer.weight, 4).dequantize(), layer.info.expected
    mean = mean_of_clipped(torch.from_numpy(like.mean), torch.from_numpy(like.std), like.low, like.high)
    whole = (one.reshape(layer.info.weights[0].shape) for one in (layer.weight, rounded))
    shift = analytic_shift(*(grouped(one, len(mean)) for one in whole), mean)
    assert layer.db(rounded, shift=shift) > layer.db(rounded) + 1.5


def rounded_by(bits):
    """Rounds a weight [inputs, outputs]."""
    return lambda matrix: nearest(matrix.T, bits).dequantize().T


def test_protection(dense):
    matrix, rounded = dense.weight.T, rounded_by(4)
    divisor = find_protection(dense.seen, [matrix], rounded)
    protected = rounded(matrix * divisor[:, None]).T
    assert dense.db(protected, dense.unseen / divisor) > dense.db(rounded(matrix).T) + 0.4


def test_smoothing(dense):
    """Activations in 8 bits too: there are no outliers, and yet the weights' rows differ in size."""
    matrix, rounded = dense.weight.T, rounded_by(8)
    low, high = torch.zeros(len(matrix)), torch.ones(len(matrix))
    found = find_smoothing(dense.seen, low, high, [matrix], rounded, 256)
    smooth = fake_quantize(dense.unseen / found.divisor, found.low, found.high, 256)
    start = dense.db(rounded(matrix).T, fake_quantize(dense.unseen, 0.0, 1.0, 256))
    assert dense.db(rounded(matrix * found.divisor[:, None]).T, smooth) > start + 2
