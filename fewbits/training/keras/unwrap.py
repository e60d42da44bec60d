"""A trained model without its rounding: a plain one whose weights are levels, and the ranges that were learned."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from fewbits.errors import InputError
from fewbits.training.keras.layers import FakeQuantize, Quantized
from fewbits.training.keras.surroundings import MOVERS


@dataclass(frozen=True)
class Learned:
    """A range that was learned.

    Attributes:
        tensor: of the plain model, symbolic: what the range is of.
        low, high: its ends.
        source: the layer that learned it; None where it is that of a tensor in front, moved.
    """

    tensor: Any
    low: float
    high: float
    source: Any = None


@dataclass(frozen=True)
class Finished:
    """The plain model, what was learned, and the bits of its weights in the file."""

    model: Any
    learned: tuple[Learned, ...]
    weight_bits: int

    def values(self, feeds: list[np.ndarray]) -> list[np.ndarray]:
        """What each tensor of ``learned`` holds for these inputs, in the model's order."""
        probe = keras.Model(self.model.inputs, [one.tensor for one in self.learned])
        return [keras.ops.convert_to_numpy(one) for one in keras.tree.flatten(probe(feeds, training=False))]


def finished(model: Any) -> Finished:
    """Take the rounding out again; recurrent layers are unrolled, so that a file has operators for them.

    Raises:
        InputError: a recurrent layer's number of steps is open.
    """
    learned: list[Learned] = []
    ranges: dict[int, tuple[float, float]] = {}
    made = {}

    def cloned(layer: Any) -> Any:
        if isinstance(layer, FakeQuantize) or not isinstance(layer, keras.layers.Layer):
            return layer
        inner = layer.layer if isinstance(layer, Quantized) else layer
        config = inner.get_config()
        if isinstance(inner, keras.layers.RNN):
            config = {**config, "unroll": True}
        made[layer.name] = type(inner).from_config(config)
        return made[layer.name]

    def called(layer: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(layer, FakeQuantize):
            (tensor,) = arguments
            ranges[id(tensor)] = layer.range()
            learned.append(Learned(tensor, *layer.range(), layer))
            return tensor
        if isinstance(layer, keras.layers.RNN) and arguments[0].shape[1] is None:
            raise InputError(
                f"layer {layer.name!r}: the number of its steps is open; give it in the model's input: "
                "keras.Input((steps, features))"
            )
        known = inspect.signature(layer.call).parameters  # what wraps it takes more
        outputs = layer(*arguments, **{name: value for name, value in named.items() if name in known})
        if isinstance(layer, MOVERS) and id(arguments[0]) in ranges:
            ranges[id(outputs)] = ranges[id(arguments[0])]
            learned.append(Learned(outputs, *ranges[id(outputs)]))
        return outputs

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), model.input
    )
    outputs = model._run_through_graph(inputs, operation_fn=cloned, call_fn=called)
    plain = keras.Model(inputs, outputs, name=model.name)
    bits = [8]
    for layer in model.layers:
        if layer.name in made:
            made[layer.name].set_weights(_weights(layer))
        if isinstance(layer, Quantized):
            bits.append(layer.weight_bits)
    return Finished(plain, tuple(learned), min(bits))


def _weights(layer: Any) -> list[np.ndarray]:
    """What the plain layer gets: levels in place of rounded weights."""
    if not isinstance(layer, Quantized):
        return list(layer.get_weights())
    rounded = {
        id(variable): keras.ops.convert_to_numpy(values)
        for (variable, _), values in zip(layer.rounded, layer.rounded_values(), strict=True)
    }
    return [rounded.get(id(one), keras.ops.convert_to_numpy(one.value)) for one in layer.layer.weights]
