"""Keras nets and what TensorFlow's own converter makes of them, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import stream
from bench.table import THREADS

EPOCHS, MORE_EPOCHS, BATCH = 5, 2, 32


def train_mnist(training: str, out: str) -> None:
    """The walk-through's net, the guides' own, trained on `training`, as a `.keras` file."""
    _keras()
    from examples.tflite_mnist import trained

    with np.load(training) as arrays:
        trained(arrays["image"], arrays["labels"], EPOCHS).save(out)


def mobilenet(out: str) -> None:
    """MobileNetV2 (alpha 0.35, 96 x 96) with random weights and batch statistics."""
    keras = _keras()
    keras.utils.set_random_seed(0)
    image = keras.Input((96, 96, 3), name="image")
    # Probabilities of 1,000 random classes are all smaller than a step of 8 bits; logits can be compared.
    net = keras.applications.MobileNetV2(
        input_tensor=image, alpha=0.35, weights=None, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, _ = layer.get_weights()
            spread = rng.uniform(0.5, 1.5, gamma.shape)
            layer.set_weights(
                [spread, rng.normal(0, 0.2, beta.shape), rng.normal(0, 0.1, mean.shape), 0.25 * spread**2]
            )
    net.save(out)


def converted(source: str, form: str, calibration: str, out: str) -> None:
    """`source` through TensorFlow's converter in one of its forms, calibrated on `calibration` where it needs that."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(_keras().models.load_model(source, compile=False))
    if form != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if form in ("int8", "int16x8"):
        converter.representative_dataset = lambda: _representative(calibration)
        builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        if form == "int16x8":
            builtins = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [builtins]
    Path(out).write_bytes(converter.convert())


def _representative(calibration: str) -> Iterator[list[np.ndarray]]:
    for feeds in stream(Path(calibration)):
        yield list(feeds.values())


def _keras() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import keras

    return keras


def trained_with_rounding(source: str, training: str, weight_bits: int, out: str) -> str:
    """`source`, prepared by fewbits, fitted for two more epochs, and compressed as it was trained: the file's path."""
    keras = _keras()
    import fewbits as fb
    from fewbits.loaded import saved
    from fewbits.training.keras import prepare

    keras.utils.set_random_seed(0)
    with np.load(training) as arrays:
        images = arrays["image"][:500]
    net = prepare(keras.models.load_model(source, compile=False), images, weight_bits)
    _fit_more(net, training)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    result = fb.compress(net, images, max_drop="100%", prefer="size", threads=THREADS, out=out)
    return str(saved(result.folder)[0])


def trained_in_float(source: str, training: str, out: str) -> None:
    """`source`, fitted for as many more epochs as with rounding, but without it."""
    keras = _keras()
    keras.utils.set_random_seed(0)
    net = keras.models.load_model(source, compile=False)
    _fit_more(net, training)
    net.save(out)


def _fit_more(net: Any, training: str) -> None:
    keras = _keras()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with np.load(training) as arrays:
        images, labels = arrays["image"], arrays["labels"]
    # A rate that ends at 0 was better than a steady one on images kept from training, with rounding and without.
    steps = MORE_EPOCHS * -(-len(images) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    net.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    net.fit(images, labels, batch_size=BATCH, epochs=MORE_EPOCHS, verbose=0)
