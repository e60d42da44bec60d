"""Make a trained Keras model ready for training with rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from fewbits.errors import InputError
from fewbits.training.keras.layers import FakeQuantize, Quantized, can_be_quantized
from fewbits.training.keras.surroundings import MOVERS, folded_into, is_relu, is_single_float
from fewbits.training.keras.unwrap import finished

BATCH = 64
BITS = (4, 8)  # what files have


def prepare(model: Any, data: Any, weight_bits: int = 8) -> Any:
    """The same model with rounding in it: weights per channel, activations in 8 bits with ranges that are learned.

    Batch normalization behind a convolution or a dense layer becomes part of it, as it does in the file. Weights are
    copied; the model itself stays as it is. Compile and fit the result as any other, and give it to ``fb.compress``.

    Args:
        model: a trained functional or sequential model.
        data: samples to start the ranges from: an array, or a list or dict of arrays where there are several inputs;
            first axis samples.
        weight_bits: 8 or 4.

    Raises:
        InputError: the model is subclassed, not built, or has a model among its layers; the data is empty, or has NaN
            or Inf.
    """
    if weight_bits not in BITS:
        raise InputError(f"weight_bits is {weight_bits!r}; allowed are {', '.join(map(str, BITS))}")
    plain = _functional(model)
    folded = folded_into(plain)
    made = {}

    def cloned(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        config = layer.get_config()
        if layer.name in folded.values():
            config = {**config, "use_bias": True}
        copy = type(layer).from_config(config)
        made[layer.name] = Quantized(copy, weight_bits) if can_be_quantized(copy) else copy
        return made[layer.name]

    def called(layer: Any, *arguments: Any, **named: Any) -> Any:
        outputs = arguments[0] if layer.name in folded else layer(*arguments, **named)
        if layer.name in waiting or isinstance(layer, MOVERS) or not is_single_float(outputs):
            return outputs
        return FakeQuantize(name=f"{layer.name}_range")(outputs)

    # Between such a layer and what follows it no codes are kept.
    waiting = {
        one for one, follower in _only_followers(plain) if follower.name in folded or is_relu(follower)
    }
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), plain.input
    )
    entering = keras.tree.map_structure(
        lambda x: FakeQuantize(name=f"{x.name}_range")(x) if is_single_float(x) else x, inputs
    )
    outputs = plain._run_through_graph(entering, operation_fn=cloned, call_fn=called)
    wrapped = keras.Model(inputs, outputs, name=plain.name)
    _copy_weights(plain, made, folded)
    _start_ranges(wrapped, data)
    return wrapped


def _functional(model: Any) -> Any:
    if not getattr(model, "inputs", None):
        raise InputError(
            f"{getattr(model, 'name', model)}: is not a built functional or sequential Keras model; call it on samples "
            "once, or write it with keras.Model(inputs, outputs)"
        )
    plain = keras.Model(model.inputs, model.outputs, name=model.name)
    if isinstance(model, keras.Model) and type(model) not in (keras.Model, keras.Sequential):
        plain = model if hasattr(model, "_run_through_graph") else plain
    inner = [layer.name for layer in plain.layers if isinstance(layer, keras.Model)]
    if inner:
        raise InputError(
            f"{plain.name}: its layer {inner[0]!r} is a model; build it from that one's layers: "
            "keras.Model(outer.inputs, inner(...)) in one piece"
        )
    return plain


def _only_followers(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers of which one other alone reads what they give, with that one."""
    for layer in model.layers:
        followers = [node.operation for node in layer._outbound_nodes if node.operation in model.operations]
        if len(followers) == 1:
            yield layer.name, followers[0]


def _copy_weights(plain: Any, made: dict[str, Any], folded: dict[str, str]) -> None:
    normalized = {layer: norm for norm, layer in folded.items()}
    for layer in plain.layers:
        if layer.name not in made or layer.name in folded:
            continue
        target = made[layer.name]
        inner = target.layer if isinstance(target, Quantized) else target
        weights = layer.get_weights()
        if layer.name in normalized:
            norm = plain.get_layer(normalized[layer.name])
            weights = _normalized(layer, weights, norm)
        inner.set_weights(weights)


def _normalized(layer: Any, weights: list[np.ndarray], norm: Any) -> list[np.ndarray]:
    """Kernel and bias that give what the layer and its batch normalization gave."""
    kernel = weights[0]
    mean, variance = (keras.ops.convert_to_numpy(one) for one in (norm.moving_mean, norm.moving_variance))
    factor = 1 / np.sqrt(variance + norm.epsilon)
    factor = factor * keras.ops.convert_to_numpy(norm.gamma) if norm.scale else factor
    shift = keras.ops.convert_to_numpy(norm.beta) if norm.center else np.zeros_like(mean)
    bias = weights[1] if len(weights) > 1 else np.zeros_like(mean)
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    wide = factor.reshape(kernel.shape[2:]) if depthwise else factor
    return [kernel * wide, (bias - mean) * factor + shift]


def _start_ranges(wrapped: Any, data: Any) -> None:
    done = finished(wrapped)
    probe = keras.Model(done.model.inputs, [one.tensor for one in done.learned])
    named = data if isinstance(data, dict) else None
    given = keras.tree.flatten(data) if named is None else [named[one.name] for one in done.model.inputs]
    arrays = [np.asarray(one) for one in given]
    count = min((len(one) for one in arrays), default=0)
    if not count:
        raise InputError("the samples that ranges are started from are empty; give some of the training data")
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError("the samples that ranges are started from have NaN or Inf; clean them first")
    ends = [(0.0, 0.0)] * len(done.learned)
    for start in range(0, count, BATCH):
        part = [array[start : start + BATCH] for array in arrays]
        for number, values in enumerate(keras.tree.flatten(probe(part, training=False))):
            seen = keras.ops.convert_to_numpy(values)
            low, high = ends[number]
            ends[number] = min(low, float(seen.min())), max(high, float(seen.max()))
    for one, (low, high) in zip(done.learned, ends, strict=True):
        if one.source is not None:
            one.source.low.assign(low)
            one.source.high.assign(high)
