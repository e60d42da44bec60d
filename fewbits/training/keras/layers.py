"""Keras layers that compute with what is left after rounding, and pass gradients on as if nothing were rounded.

The gradient is that of the clipped number (the straight-through estimator: Bengio, Léonard and Courville 2013,
"Estimating or Propagating Gradients Through Stochastic Neurons"); what is clipped away moves the end of the range.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

SMALLEST = 1e-7  # a range that is narrower has no levels
LEVELS = 255  # steps of 8-bit activations


@keras.saving.register_keras_serializable("fewbits")
class FakeQuantize(keras.layers.Layer):
    """Rounds activations to the 256 levels of a range that is learned, and that holds 0 as a level."""

    def build(self, input_shape: Any) -> None:
        """The two ends."""
        self.low = self.add_weight(shape=(), initializer="zeros", name="low")
        self.high = self.add_weight(shape=(), initializer="zeros", name="high")

    def call(self, x: Any) -> Any:
        """Of the same shape and dtype."""
        low, high = ops.minimum(self.low, 0.0), ops.maximum(self.high, 0.0)
        step = ops.maximum(high - low, SMALLEST) / LEVELS
        zero = ops.clip(ops.round(-low / step), 0, LEVELS)
        codes = ops.clip(ops.round(x / step) + zero, 0, LEVELS)
        clipped = ops.where(x < low, low, ops.where(x > high, high, x))  # at an end nothing moves it
        return _straight_through((codes - zero) * step, clipped)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As it comes."""
        return input_shape

    def range(self) -> tuple[float, float]:
        """The ends as they are now: ``low <= 0 <= high``."""
        low, high = (float(ops.convert_to_numpy(end.value)) for end in (self.low, self.high))
        return min(low, 0.0), max(high, 0.0)


@keras.saving.register_keras_serializable("fewbits")
class Quantized(keras.layers.Wrapper):
    """A layer that computes with its weights rounded to levels of one scale per channel, symmetric around 0.

    The largest weight of a channel is its last level. Shorter reaches, of least squared error and then learned or not,
    lost more at 4 bits on MNIST.
    """

    def __init__(self, layer: Any, weight_bits: int = 8, **more: Any) -> None:
        super().__init__(layer, **{"name": layer.name, **more})
        self.weight_bits = weight_bits

    @property
    def rounded(self) -> list[tuple[Any, tuple[int, ...]]]:
        """The variables that are rounded, and the axes of each that a scale is shared along."""
        return _rounded(self.layer)

    def rounded_values(self) -> list[Any]:
        """The rounded variables' numbers, in the order of ``rounded``."""
        return [_round_weight(variable.value, axes, self.weight_bits) for variable, axes in self.rounded]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """What the layer gives with rounded weights."""
        values = dict(zip((id(one) for one, _ in self.rounded), self.rounded_values(), strict=True))
        held = self.layer.variables
        known = inspect.signature(self.layer.call).parameters
        more = {name: value for name, value in (("training", training), ("mask", mask)) if name in known}
        with keras.StatelessScope([(one, values.get(id(one), one.value)) for one in held]) as scope:
            outputs = self.layer(inputs, **more)
        for one in self.layer.non_trainable_variables:  # such as a dropout's seed
            one.assign(scope.get_current_value(one))
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> Mapping[str, Any]:
        """See Keras."""
        return {**super().get_config(), "weight_bits": self.weight_bits}


def can_be_quantized(layer: Any) -> bool:
    """Whether it has weights whose products TensorFlow Lite computes on codes."""
    return bool(_kinds(layer))


def _kinds(layer: Any) -> Sequence[tuple[str, int]]:
    """The attributes that hold such weights, and how many of their last axes are channels."""
    kinds = keras.layers
    if isinstance(layer, kinds.SeparableConv2D):
        return (("depthwise_kernel", 2), ("pointwise_kernel", 1))
    if isinstance(layer, kinds.DepthwiseConv2D):
        return (("kernel", 2),)
    if isinstance(layer, (kinds.Conv1D, kinds.Conv2D, kinds.Dense)):
        return (("kernel", 1),)
    if isinstance(layer, (kinds.LSTM, kinds.GRU)):
        return (("cell.kernel", 1), ("cell.recurrent_kernel", 1))
    return ()


def _rounded(layer: Any) -> list[tuple[Any, tuple[int, ...]]]:
    found = []
    for path, channels in _kinds(layer):
        owner = layer
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        wanted = getattr(owner, name)
        (variable,) = (one for one in layer.variables if one is wanted)
        found.append((variable, tuple(range(len(variable.shape) - channels))))
    return found


def _round_weight(weight: Any, axes: tuple[int, ...], bits: int) -> Any:
    # Some weight is the last level, so that the scale can be read off the weights.
    limit = ops.maximum(ops.max(ops.abs(weight), axis=axes), SMALLEST)
    step = limit / ((1 << (bits - 1)) - 1)
    return _straight_through(ops.round(weight / step) * step, weight)


def _straight_through(rounded: Any, clipped: Any) -> Any:
    return clipped + ops.stop_gradient(rounded - clipped)
