"""The capability tables: how files are written for each engine, as measured, with the reason beside each entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fewbits.engines.cpu import Cpu
from fewbits.planning.target import Target, Way

MOVERS = (
    "MaxPool",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Transpose",
    "Slice",
    "Expand",
)

CAST_MUL = ("int8", "int4", "int3", "int2", "ternary", "binary", "fp16", "bf16")

_OPENVINO = Target(
    engine="openvino",
    placement="inputs",
    activation_qtype="uint8",  # as for ONNX Runtime; int8 ones compute the same, as fast
    quantize_outputs=False,  # it fuses the requantization of the next input by itself
    quantize_residuals=False,  # the sum is fused in float, which keeps 2 to 3 dB
    # Pooling codes is faster and padding is fused. Moving codes through other operators gains nothing (up to 5 %
    # slower): floats are moved and quantized in one go.
    moves_through=frozenset(("MaxPool", "Pad")),
    repeat_after_layout=False,  # one pair is enough: it moves the quantization through them by itself
    dynamic_int8=False,  # the codes are multiplied in float: 1.3 times slower than float
    rounds_activations=True,  # dynamic quantization in groups: twice as fast as float, at about 45 dB
    weight_forms=(
        *((qtype, "cast_mul") for qtype in CAST_MUL),
        ("int4 in groups", "dequantize"),
        ("codebook4", "look_up"),
    ),
    # one row by 4096 x 4096: over three times as fast as float
    keeps_packed=frozenset(("int8", "int4 in groups")),
    # "expects Constant for port 4": beside quantized activations it keeps Cast and Mul (2026.4)
    constant_recurrent=True,
    wrong_odd_sums=True,  # in bf16 (2026.4): 21 dB for 257 terms, 51 for 256 or 258
    activation_bits=(8, 4),  # 4: brought back to float in front of the product
)

TARGETS: dict[str, tuple[Target, ...]] = {
    "openvino": (
        _OPENVINO,
        # Small convolutional nets gain up to a tenth when residual sums run on codes too; shortcuts that are sliced
        # must then be sliced as codes, or each is brought back and quantized anew (ResNet-20: 6 % of its time).
        replace(
            _OPENVINO,
            placement="everywhere",
            quantize_outputs=True,
            quantize_residuals=True,
            moves_through=frozenset(("MaxPool", "Pad", "Slice")),
        ),
    ),
    "onnxruntime": (
        Target(
            engine="onnxruntime",
            placement="everywhere",
            activation_qtype="uint8",  # of int8 ones, sums and products run in float: 2 to 2.6 times slower
            # QLinearConv needs a quantized output. Else the convolution runs in float and its weights are brought
            # back every time: twice as slow as float.
            quantize_outputs=True,
            quantize_residuals=True,  # QLinearAdd; else codes are brought back and forth, and a sixth slower
            moves_through=frozenset(MOVERS),
            # It moves quantization through most of them by itself, but runs Flatten on codes only between two pairs of
            # the same scale.
            repeat_after_layout=True,
            dynamic_int8=True,  # MatMulInteger, fused with its scale: twice as fast as float
            dynamic_lstm=True,  # DynamicQuantizeLSTM: 1.2 (128 wide, one step) to 3.9 times as fast as float
            rounds_activations=False,  # only in block-quantized products, whose weights it would round as well
            # Cast and Mul are folded at load. DequantizeLinear is not, and is 1.5 (products) to 1.9 times slower
            # (convolutions); in blocks of int4 by few rows it is faster than float.
            weight_forms=(
                *((qtype, "cast_mul") for qtype in CAST_MUL),
                ("int4 in groups", "dequantize"),
                ("codebook4", "look_up"),
            ),
            keeps_packed=frozenset(("int4 in groups",)),  # one row by 4096 x 4096: 2.6 times as fast as float
            activation_bits=(8, 4),  # as for OpenVINO
        ),
    ),
    "litert": (
        Target(
            engine="litert",
            placement="throughout",
            activation_qtype="int8",
            quantize_outputs=True,  # what runs on codes gives codes: converting at every layer is slower than float
            quantize_residuals=True,
            moves_through=frozenset(),  # operators that move values have rows of their own in models/tflite
            repeat_after_layout=False,
            dynamic_int8=True,
            rounds_activations=False,
            # XNNPACK brings the weights back when it loads the file.
            weight_forms=tuple((qtype, "dequantize") for qtype in ("int8", "int4", "fp16")),
            codes_throughout=True,
            integer_only=True,
            activation_bits=(8, 16),
            blocks=False,
        ),
    ),
}
"""How files are written for x86 CPUs with VNNI or AMX, and for CPUs that nothing is known of."""

GAINS: dict[str, dict[Way, float]] = {
    "onnxruntime": {"codes": 2.0, "as they come": 2.0, "packed": 2.5},
    "openvino": {"codes": 2.5, "rounded": 2.0, "packed": 3.3},
    "litert": {"codes": 2.5, "as they come": 2.0},
}
"""How many times as fast as in float a layer is, by how its products are computed: with VNNI, about what the small nets
of ``make bench-capabilities`` gain. It puts options in an order; nobody is told these numbers of a model."""
GAIN_IN_PAIRS = 1.3  # of codes by codes on x86 CPUs without VNNI
GAIN_OF_16_BITS = 1.7  # of computing floats in bf16 or f16, where the CPU has them

PAIRS: dict[str, dict[str, Any]] = {
    # Both add 8-bit products in pairs with vpmaddubsw: of an attention block, 14 and 16 dB were left instead of 56 and
    # 49. LiteRT's kernels widen codes before they multiply them.
    "onnxruntime": {"saturates": True},
    # Activations of weight-only layers stay float whatever it is told; weights are multiplied packed all the same.
    "openvino": {"saturates": True, "rounds_activations": False},
}
"""What is otherwise on x86 CPUs without VNNI, also those with AVX-512."""

ARM: dict[str, dict[str, Any]] = {
    # ONNX Runtime fuses the same on Arm, and multiplies by Neon, dot products or int8 matrix products, whichever are
    # there; int8 activations would do as well. Nothing overflows.
    #
    # OpenVINO has int8 kernels for linear layers, and for convolutions whose result is quantized as well. Weights are
    # brought back when it loads the file, and activations of weight-only layers stay float. Convolutions of int8
    # activations were seen computed in 16-bit floats by a reference kernel, at 54 dB.
    "openvino": {"rounds_activations": False, "keeps_packed": frozenset(), "wrong_odd_sums": False},
}
"""What is otherwise on Arm CPUs."""

ARM_PLACEMENTS = {"openvino": ("everywhere",)}
"""The placements that are worth writing on Arm CPUs, where not all are."""


def targets(engine: str, cpu: Cpu) -> tuple[Target, ...]:
    """The ways of writing files for that engine on that CPU, the most accurate first."""
    rows = TARGETS[engine]
    if cpu.is_arm:
        kept = ARM_PLACEMENTS.get(engine)
        return tuple(
            replace(row, **ARM.get(engine, {})) for row in rows if kept is None or row.placement in kept
        )
    if cpu.adds_pairs:
        return tuple(replace(row, **PAIRS.get(engine, {})) for row in rows)
    return rows
