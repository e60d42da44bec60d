"""Layers as planning sees them, without a model."""

from fewbits.planning.model_info import LayerInfo, LayerKind, ModelInfo, WeightInfo

KINDS: dict[str, LayerKind] = {"Conv": "conv", "MatMul": "linear", "Gemm": "linear", "Gather": "embedding"}


def layer(name: str, op: str = "MatMul", shape: tuple[int, ...] = (64, 32), **given) -> LayerInfo:
    """A layer with one weight of that shape, summed over its first axis."""
    weights = (WeightInfo(f"{name}.weight", shape, 1, 0),)
    fields = {"kind": KINDS.get(op, "recurrent"), "weights": weights, "bias": None, "inputs": ("x",)} | given
    return LayerInfo(name=name, node=name, op=op, output=f"{name}_y", **fields)


def product(name: str) -> LayerInfo:
    """A product of two activations."""
    return layer(name, "MatMul", kind="matmul", weights=(), inputs=("a", "b"))


def info(*layers: LayerInfo, in_codes: int = 0) -> ModelInfo:
    """A model of these layers."""
    return ModelInfo((), (), layers, in_codes)
