"""Keras layers that compute with what is left after rounding, and pass gradients on as if nothing were rounded.

The gradient is that of the clipped number (the straight-through estimator: Bengio, Léonard and Courville 2013,
"Estimating or Propagating Gradients Through Stochastic Neurons"); what is clipped away moves the end of the range.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
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

    At 8 bits the largest weight of a channel is its last level. With fewer, how far the levels reach is learned for
    each channel, from where the squared error is least.
    """

    def __init__(self, layer: Any, weight_bits: int = 8, **more: Any) -> None:
        super().__init__(layer, **{"name": layer.name, **more})
        self.weight_bits = weight_bits

    def build(self, input_shape: Any = None) -> None:
        """The reach of each rounded weight, [channels]."""
        super().build(input_shape)
        self.reaches = []
        for variable, axes in self.rounded:
            kept = [size for axis, size in enumerate(variable.shape) if axis not in axes]
            name = f"{variable.name}_reach"
            self.reaches.append(
                self.add_weight(shape=kept, initializer="ones", name=name, trainable=self.weight_bits < 8)
            )

    @property
    def rounded(self) -> list[tuple[Any, tuple[int, ...]]]:
        """The variables that are rounded, and the axes of each that a scale is shared along."""
        return _rounded(self.layer)

    def start(self) -> None:
        """Set the reaches to where the least squared error is."""
        for (variable, axes), reach in zip(self.rounded, self.reaches, strict=True):
            reach.assign(_best_reach(ops.convert_to_numpy(variable.value), axes, self.weight_bits))

    def rounded_values(self) -> list[Any]:
        """The rounded variables' numbers, in the order of ``rounded``."""
        return [
            _round_weight(variable.value, reach.value, axes, self.weight_bits)
            for (variable, axes), reach in zip(self.rounded, self.reaches, strict=True)
        ]

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


def _round_weight(weight: Any, reach: Any, axes: tuple[int, ...], bits: int) -> Any:
    largest = ops.max(ops.abs(weight), axis=axes)
    limit = largest if bits >= 8 else ops.minimum(ops.abs(reach), largest)
    limit = ops.maximum(
        limit, SMALLEST
    )  # so some weight is the last level: the scale can be read off the weights
    step = limit / ((1 << (bits - 1)) - 1)
    clipped = ops.minimum(ops.maximum(weight, -limit), limit)
    return _straight_through(ops.round(clipped / step) * step, clipped)


def _straight_through(rounded: Any, clipped: Any) -> Any:
    return clipped + ops.stop_gradient(rounded - clipped)


def _best_reach(weight: np.ndarray, axes: tuple[int, ...], bits: int) -> np.ndarray:
    largest = np.abs(weight).max(axis=axes)
    best, least = largest, np.full(largest.shape, np.inf)
    for share in np.linspace(0.5, 1, 26):
        step = np.maximum(largest * share, SMALLEST) / ((1 << (bits - 1)) - 1)
        last = (1 << (bits - 1)) - 1
        error = ((np.round(weight / step).clip(-last, last) * step - weight) ** 2).sum(axis=axes)
        best, least = np.where(error < least, largest * share, best), np.minimum(error, least)
    return best
