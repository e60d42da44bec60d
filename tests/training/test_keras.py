"""Training with rounding in Keras: what is learned is what the file holds."""

import importlib.util
import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="needs Keras and TensorFlow: pip install 'fewbits[keras]'")
pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'fewbits[tflite]'")
if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs TensorFlow: pip install 'fewbits[keras]'", allow_module_level=True)

import fewbits as fb
from fewbits.errors import InputError
from fewbits.models.tflite.load import parse
from fewbits.models.tflite.types import FLOAT32, NAMES
from fewbits.training.keras import finished, is_prepared, prepare

layers = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((96, 8, 8, 2)).astype(np.float32)
LABELS = RNG.integers(0, 3, 96)


def numbers(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def convolutional():
    image = keras.Input((8, 8, 2), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(image)))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    model = keras.Model(image, layers.Dense(3)(layers.Dropout(0.1)(x)), name="net")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return model


def recurrent(kind):
    steps = keras.Input((4, 32), name="image")
    return keras.Sequential([steps, kind(32), layers.Dense(3)], name="net")


def trained(model, images, bits=8, epochs=1):
    prepared = prepare(model, images[:32], bits)
    prepared.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    prepared.fit(images, LABELS, epochs=epochs, verbose=0)
    return prepared


def sqnr_db(expected, got):
    return 10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum())


def codes(path):
    """Codes, scales and the dtype of the file's weights, and the scales and zero points of its activations."""
    model = parse(path.read_bytes(), path)
    graph = model.subgraphs[0]
    found = []
    for tensor in graph.tensors:
        quantization = tensor.quantization
        if quantization is not None and quantization.scale is not None:
            found.append(
                (NAMES[tensor.type], np.asarray(quantization.scale), np.asarray(quantization.zeroPoint))
            )
    return graph, found


@pytest.mark.parametrize("bits", [8, 4])
def test_what_was_trained_is_what_the_file_computes(tmp_path, short_measuring, bits):
    before = convolutional()
    prepared = trained(before, IMAGES, bits)
    assert is_prepared(prepared) and not is_prepared(before)
    result = fb.compress(
        prepared, IMAGES, out=tmp_path / "o", prefer="size", max_drop="100%", float_fallback=False
    )
    assert sqnr_db(numbers(prepared(IMAGES)), result.model(IMAGES)) > 30, "the same rounding in both"
    graph, found = codes(tmp_path / "o" / "net.tflite")
    ends = {*graph.inputs, *graph.outputs}
    assert {number for number, tensor in enumerate(graph.tensors) if tensor.type == FLOAT32} <= ends
    assert sum(dtype == f"int{bits}" and len(scale) > 1 for dtype, scale, _ in found) == 3
    scales = [float(scale[0]) for dtype, scale, _ in found if dtype == "int8" and len(scale) == 1]
    for one in finished(prepared).learned:
        assert any(np.isclose(scale, (one.high - one.low) / 255, rtol=1e-4) for scale in scales)


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_recurrent_layers_are_unrolled_onto_integers(tmp_path, short_measuring, kind):
    steps = IMAGES.reshape(96, 4, 32)
    prepared = trained(recurrent(kind), steps)
    result = fb.compress(prepared, steps, out=tmp_path / "o", prefer="size", max_drop="100%")
    assert sqnr_db(numbers(prepared(steps)), result.model(steps)) > 20
    graph, _ = codes(tmp_path / "o" / "net.tflite")
    ends = {*graph.inputs, *graph.outputs}
    assert {number for number, tensor in enumerate(graph.tensors) if tensor.type == FLOAT32} <= ends


def test_it_starts_as_the_model_was_and_leaves_that_alone(tmp_path):
    model = convolutional()
    before = [weight.copy() for weight in model.get_weights()]
    assert sqnr_db(numbers(model(IMAGES)), numbers(prepare(model, IMAGES)(IMAGES))) > 25
    prepared = trained(model, IMAGES)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    prepared.save(tmp_path / "prepared.keras")
    again = keras.models.load_model(tmp_path / "prepared.keras")
    np.testing.assert_array_equal(numbers(again(IMAGES)), numbers(prepared(IMAGES)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IMAGES[:0], 8), "are empty"),
        ((np.full((4, 8, 8, 2), np.nan, np.float32), 8), "NaN or Inf"),
        ((IMAGES, 3), "weight_bits is 3; allowed are 4, 8"),
    ],
)
def test_what_cannot_be_prepared_is_said(arguments, words):
    with pytest.raises(InputError, match=words):
        prepare(convolutional(), *arguments)


def test_models_inside_models_and_unbuilt_ones_are_refused():
    with pytest.raises(InputError, match="is not a built functional or sequential"):
        prepare(keras.Sequential([layers.Dense(2)]), IMAGES)
    image = keras.Input((8, 8, 2))
    with pytest.raises(InputError, match="its layer 'net' is a model"):
        prepare(keras.Model(image, convolutional()(image)), IMAGES)


def test_an_open_number_of_steps_cannot_be_unrolled():
    steps = keras.Input((None, 4))
    prepared = keras.Sequential([steps, layers.LSTM(3)])
    with pytest.raises(InputError, match="the number of its steps is open"):
        prepare(prepared, RNG.standard_normal((4, 6, 4)).astype(np.float32))
