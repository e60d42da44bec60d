"""What stands around a layer: batch normalization that becomes part of it, and what hands values on as they are."""

from __future__ import annotations

from typing import Any

import keras

kinds = keras.layers
MOVERS = (
    kinds.Reshape,
    kinds.Flatten,
    kinds.Permute,
    kinds.RepeatVector,
    kinds.Dropout,
    kinds.SpatialDropout1D,
    kinds.SpatialDropout2D,
    kinds.MaxPooling1D,
    kinds.MaxPooling2D,
    kinds.GlobalMaxPooling1D,
    kinds.GlobalMaxPooling2D,
    kinds.ZeroPadding1D,
    kinds.ZeroPadding2D,
    kinds.Cropping1D,
    kinds.Cropping2D,
    kinds.UpSampling2D,
)
"""Layers behind which values are in the range that they were in in front."""


def is_relu(layer: Any) -> bool:
    """Whether TensorFlow Lite makes it part of the operator in front."""
    if isinstance(layer, kinds.ReLU):
        return not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6, 6.0)
    if isinstance(layer, kinds.Activation):
        return layer.activation in (keras.activations.relu, keras.activations.relu6)
    return False


def is_single_float(outputs: Any) -> bool:
    """One tensor of floats."""
    return hasattr(outputs, "dtype") and str(outputs.dtype).startswith(("float", "bfloat"))


def folded_into(model: Any) -> dict[str, str]:
    """Batch normalizations that can become part of the layer in front, by name, with that layer's name."""
    found = {}
    for layer in model.layers:
        if not isinstance(layer, kinds.BatchNormalization) or len(layer._inbound_nodes) != 1:
            continue
        before = [node.operation for node in layer._inbound_nodes[0].parent_nodes]
        if len(before) != 1 or not isinstance(before[0], (kinds.Conv2D, kinds.DepthwiseConv2D, kinds.Dense)):
            continue
        readers = [node for node in before[0]._outbound_nodes if node.operation in model.operations]
        last = layer.axis in (-1, len(layer.output.shape) - 1)
        linear = before[0].activation is keras.activations.linear
        transposed = isinstance(before[0], kinds.Conv2DTranspose)
        if len(readers) == 1 and last and linear and not transposed:
            found[layer.name] = before[0].name
    return found
